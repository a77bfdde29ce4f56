"""Rewards by execution: of the final query, and of the queries on the way to it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ..rewards import extract_answer
from .database import Database, QueryError, Row

REFERENCE_ROWS = 100_000
REFERENCE_SECONDS = 30.0
"""What a reference query may return and take, unless the database allows the model more."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")


class SQLRewards:
    """
    Rewards of rollouts that write SQL. The column `answer` of the dataset holds the reference query, or several, of which the best
    counts; the model gives its own between `<answer>` and `</answer>`.

    References may return 100,000 rows and take 30 seconds, but have the database's other limits: one SELECT statement of 10,000
    characters, results of a million. [`SQLRewards.check`] runs all of them before training.

    Args:
        database ([`Database`]): What queries are run on.
        penalty (`float`, *optional*, defaults to -0.1): Turn reward of a query that fails.
    """

    def __init__(self, database: Database, penalty: float = -0.1):
        self.database = database
        self.penalty = penalty
        rows, seconds = max(database.max_rows, REFERENCE_ROWS), max(database.seconds, REFERENCE_SECONDS)
        self._for_references = Database(database.path, max_rows=rows, seconds=seconds)
        self._expected = lru_cache(maxsize=1024)(self._run_reference)

    def check(self, answer: Iterable[str | list[str]]) -> None:
        """
        Run the reference queries of a dataset, so that one that fails ends training before it begins.

        Args:
            answer (`Iterable[str]` or `Iterable[list[str]]`): The dataset's column `answer`.

        Raises:
            ValueError: If a reference query fails.
        """
        for references in answer:
            for reference in _references(references):
                self._expected(reference)

    def execution_match(self, turns: list[list[Any]], answer: list[str | list[str]], **columns: Any) -> list[float]:
        """
        Reward rollouts whose final query returns the rows of the reference query.

        Args:
            turns (`list[list[Turn]]`): The turns of each rollout. The final query stands in the last one.
            answer (`list[str]` or `list[list[str]]`): Reference queries.
            **columns: The dataset's other columns, which are not used.

        Returns:
            `list[float]`: 1 where the rows are equal, in their order if the reference asks for one; else 0.

        Raises:
            ValueError: If a reference query fails.
        """
        return [
            float(any(self._matches(own, reference) for reference in _references(references)))
            for own, references in zip(turns, answer, strict=True)
        ]

    def query_reward(
        self, turns: list[list[Any]], answer: list[str | list[str]], **columns: Any
    ) -> list[list[float | None]]:
        """
        Reward turns by their queries: by how much nearer they come to the rows that are asked for than any turn before.

        Args:
            turns (`list[list[Turn]]`): The turns of each rollout.
            answer (`list[str]` or `list[list[str]]`): Reference queries.
            **columns: The dataset's other columns, which are not used.

        Returns:
            `list[list[float | None]]`: for each turn the rise of the best F1 of rows so far, between 0 and 1, or the penalty if a
            query failed; `None` for a turn without a query that was executed.

        Raises:
            ValueError: If a reference query fails.
        """
        return [self._rise(own, _references(references)) for own, references in zip(turns, answer, strict=True)]

    def _matches(self, turns: list[Any], reference: str) -> bool:
        expected, written = self._expected(reference), extract_answer(turns[-1].text) if turns else None
        try:
            return written is not None and same_rows(self.database.rows(written), expected, is_ordered(reference))
        except QueryError:
            return False

    def _rise(self, turns: list[Any], references: list[str]) -> list[float | None]:
        best, rewards = 0.0, []
        for turn in turns:
            executed = [call for call, _ in zip(turn.calls, turn.results, strict=False)]
            queries = [call.arguments.get("sql") for call in executed if call.name == self.database.query.__name__]
            try:
                near = max((self._nearness(query, references) for query in queries), default=None)
            except QueryError:
                rewards.append(self.penalty)
                continue
            rewards.append(None if near is None else max(near - best, 0.0))
            best = max(best, near or 0.0)
        return rewards

    def _nearness(self, query: Any, references: list[str]) -> float:
        if not isinstance(query, str):
            raise QueryError("there is no query")
        rows = self.database.rows(query)
        return max(rows_f1(rows, self._expected(reference)) for reference in references)

    def _run_reference(self, sql: str) -> list[Row]:
        try:
            return self._for_references.rows(sql)
        except QueryError as error:
            raise ValueError(f"The reference query {sql!r} in 'answer' fails: {error}.") from error


def _references(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def same_rows(found: Sequence[Row], expected: Sequence[Row], ordered: bool = False) -> bool:
    """Whether two results are equal: as lists if `ordered`, else whatever the order of their rows, each as often."""
    return list(found) == list(expected) if ordered else Counter(found) == Counter(expected)


def rows_f1(found: Sequence[Row], expected: Sequence[Row]) -> float:
    """
    How near a result is to the expected one.

    Args:
        found, expected (`Sequence[tuple]`): Rows, in any order; one that is there twice counts twice.

    Returns:
        `float`: the harmonic mean of precision and recall, 1 for two results without rows.

    Example:
        >>> rows_f1([("Lyon",), ("Bern",)], [("Lyon",), ("Nice",)])
        0.5
    """
    shared = sum((Counter(found) & Counter(expected)).values())
    return 2 * shared / (len(found) + len(expected)) if found or expected else 1.0


def is_ordered(sql: str) -> bool:
    """
    Whether a query asks for an order of its rows; that of a subquery or a window is none of them.

    Example:
        >>> is_ordered("SELECT name FROM city ORDER BY name"), is_ordered("SELECT 'order by'")
        (True, False)
    """
    outer, inner = "", _QUOTED.sub(" ", sql)
    while outer != inner:
        outer, inner = inner, _INNERMOST.sub(" ", inner)
    return re.search(r"\border\s+by\b", outer, re.IGNORECASE) is not None
