"""A SQLite database that a model may read: never write, never for long, never more than fits."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

Row = tuple
"""Values of one row: text, numbers, bytes or `None`."""

READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""What the authorizer allows; SQL that attaches, writes or sets anything is refused before it runs."""
FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "printf", "format"}
"""Code and pointers; and functions that pad to any width, in one instruction, which no clock can interrupt."""
TRIMS = ("trim", "ltrim", "rtrim")
"""With the characters to cut off for a second argument they are refused: their time is the product of both lengths."""
WORDS = {"user-defined function raised exception": "trim, ltrim and rtrim take one argument only"}
"""What the model reads in place of an error of SQLite's."""
LIMITS = {  # for SQL that nobody has read, those of https://sqlite.org/security.html or less
    # SQLite looks at the clock in loops and jumps only: what is left of a query without them is bounded by how many
    # instructions it has and how long a text one of them, `instr` or `GLOB`, has to search.
    sqlite3.SQLITE_LIMIT_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 2_500,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 10,
}
STEPS_BETWEEN_LOOKS = 100
"""Instructions of SQLite's virtual machine between two looks at the clock."""
MOST_CHARACTERS = 1_000_000
"""Of all texts and blobs of a result together."""


class QueryError(Exception):
    """A query that was refused, failed, ran too long, or returned too much."""


class Database:
    """
    A SQLite file with a tool that reads it. Every query has a connection of its own, so that any thread may ask.

    Args:
        path (`Path` or `str`): The file. It is opened read-only.
        shown_rows (`int`, *optional*, defaults to 5): Rows that the model reads of a result.
        max_rows (`int`, *optional*, defaults to 1000): Rows that a query may return.
        seconds (`float`, *optional*, defaults to 1.0): Time that a query may take.

    Raises:
        FileNotFoundError: If there is no such file.

    Example:
        >>> import sqlite3, tempfile
        >>> path = tempfile.mkdtemp() + "/atlas.db"
        >>> with sqlite3.connect(path) as connection:
        ...     _ = connection.execute("CREATE TABLE city (name, country)")
        ...     _ = connection.execute("INSERT INTO city VALUES ('Lyon', 'France')")
        >>> Database(path).query("SELECT name, country FROM city")
        "'Lyon', 'France'"
    """

    def __init__(self, path: Path | str, shown_rows: int = 5, max_rows: int = 1000, seconds: float = 1.0):
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no database {str(path)!r}.")
        self.shown_rows = shown_rows
        self.max_rows = max_rows
        self.seconds = seconds

    def query(self, sql: str) -> str:
        """
        Runs a query on the database.

        Args:
            sql: One SELECT statement of SQLite.

        Returns:
            The first rows, one a line, with their values as SQL writes them.
        """
        rows = self.rows(sql)
        lines = [", ".join(map(literal, row)) for row in rows[: self.shown_rows]]
        hidden = len(rows) - len(lines)
        return "\n".join(lines + [f"and {hidden} more rows"] * bool(hidden)) or "no rows"

    def rows(self, sql: str) -> list[Row]:
        """
        All rows that a query returns.

        Args:
            sql (`str`): One SELECT statement.

        Returns:
            `list[tuple]`: its rows, in their order.

        Raises:
            QueryError: If it is no such statement, fails, or goes beyond a limit.
        """
        end = time.monotonic() + self.seconds
        try:
            with closing(self._connect(end)) as connection:
                return list(self._fetch(connection.execute(sql)))
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # a ValueError is about characters in the text
            if time.monotonic() >= end:
                raise QueryError(f"the query took more than {self.seconds:g} s") from error
            raise QueryError(WORDS.get(str(error), str(error))) from error
        except MemoryError as error:  # SQLite has no other word for more than SQLITE_LIMIT_VDBE_OP
            raise QueryError("the query is too complex") from error

    def _connect(self, end: float) -> sqlite3.Connection:
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=self.seconds)
        for limit, most in LIMITS.items():
            connection.setlimit(limit, most)
        for name in TRIMS:
            connection.create_function(name, 2, _refuse)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() >= end, STEPS_BETWEEN_LOOKS)
        return connection

    def _fetch(self, cursor: sqlite3.Cursor) -> Iterator[Row]:
        if cursor.description is None:
            raise QueryError("there is no SELECT statement")
        characters = 0
        for number, row in enumerate(cursor, start=1):
            characters += sum(len(value) for value in row if isinstance(value, str | bytes))
            if number > self.max_rows:
                raise QueryError(f"the query returns more than {self.max_rows} rows")
            if characters > MOST_CHARACTERS:
                raise QueryError(f"the query returns more than {MOST_CHARACTERS} characters")
            yield row


def _authorize(action: int, first: str | None, second: str | None, *where: str | None) -> int:
    is_forbidden = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_OK if action in READING and not is_forbidden else sqlite3.SQLITE_DENY


def _refuse(*arguments: object) -> None:
    raise ValueError


def literal(value: str | bytes | float | None) -> str:
    """A value as SQL writes it, such as a query may have it again."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"X'{value.hex().upper()}'"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
