"""The rollouts of runs as a browser shows them: a light index of all of them, and their texts in parts."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from .measures import ROLLOUT, Measures
from .runs import Run

QUESTION_LENGTH = 240
"""Characters of a question in the index."""
MARK = re.compile(r"<\|[^|<>]*\|>")
"""A special token of a chat template."""
DETAILS = (
    "text",
    "num_tokens",
    "observation",
    "num_observation_tokens",
    "calls",
    "belief_before",
    "belief_after",
    "information_gain",
    "normalized_gain",
    "turn_group_size",
    "advantage",
    "outcome_advantage",
    "clip_low",
    "clip_high",
    "clip_scale",
    "estimator_columns",
)
"""What is shown of a turn, of the columns of `records.SCHEMA`."""


@dataclass(frozen=True)
class Rollout:
    """
    A rollout.

    Attributes:
        run (`int`): Number of the run in the report.
        step, batch, group, generation (`int`): Its place in the run.
        question (`str`): The line of the prompt that tells it from others, cut.
        prompt, answer, stop_reason, reward, rewards: As in `records.SCHEMA`.
        turns (`list[dict]`): `DETAILS` of each turn; NaN is `None`.
    """

    run: int
    step: int
    batch: int
    group: int
    generation: int
    question: str
    prompt: str
    answer: str | None
    reward: float | None
    rewards: dict[str, float | None]
    stop_reason: str | None
    turns: list[dict[str, Any]]


def read_rollouts(run: Run, number: int, chosen: set[tuple[int, int]]) -> Iterator[Rollout]:
    """
    Rollouts of a run, oldest first.

    Args:
        run ([`Run`]): The run.
        number (`int`): Its number in the report.
        chosen (`set[tuple[int, int]]`): Batch and group of those to read, see [`choose_groups`].
    """
    prompts = {prompt for table in run.batches(["prompt"]) for prompt in table["prompt"].unique().to_pylist()}
    begin, end = _frame(prompts)
    batches = {batch for batch, _ in chosen}
    for table in run.batches():
        if table["batch"][0].as_py() not in batches:
            continue
        places = zip(table["batch"].to_pylist(), table["group"].to_pylist(), strict=True)
        table = table.filter(pa.array([place in chosen for place in places], pa.bool_()))
        rows = table.sort_by([(name, "ascending") for name in (*ROLLOUT, "turn")]).to_pylist(maps_as_pydicts="lossy")
        for place, turns in groupby(rows, key=lambda row: tuple(row[name] for name in ROLLOUT)):
            yield _rollout(number, place, list(turns), begin, end)


def choose_groups(measures: Measures, limit: int | None = None) -> set[tuple[int, int]]:
    """
    Whole groups from all of a run.

    Args:
        measures ([`Measures`]): Of the run.
        limit (`int`, *optional*): About how many rollouts they may have; all groups without it, one at least.

    Returns:
        `set[tuple[int, int]]`: batch and group of each.
    """
    rollouts = measures.rollouts
    groups = list(rollouts[["batch", "group"]].drop_duplicates().astype(int).itertuples(index=False, name=None))
    if limit is None or len(rollouts) <= limit:
        return set(groups)
    count = max(1, limit * len(groups) // len(rollouts))
    return {groups[i] for i in np.linspace(0, len(groups) - 1, count).round().astype(int)}


def _rollout(run: int, place: tuple[int, int, int], turns: list[dict], begin: int, end: int) -> Rollout:
    first = turns[0]
    prompt = first["prompt"] or ""
    return Rollout(
        run,
        first["step"],
        *place,
        question(prompt, begin, end),
        prompt,
        first["answer"],
        _number(first["reward"]),
        {name: _number(value) for name, value in (first["rewards"] or {}).items()},
        first["stop_reason"],
        [{name: _tidy(turn[name]) for name in DETAILS} for turn in turns],
    )


def _frame(prompts: set[str]) -> tuple[int, int]:
    """Characters, in whole lines, with which all prompts begin, and with which they end."""
    if len(prompts) < 2:
        return 0, 0
    begin = _shared(prompts)
    first = next(iter(prompts))
    end = first[len(first) - _shared({prompt[::-1] for prompt in prompts}) :]
    return first.rfind("\n", 0, begin) + 1, len(end) - end.find("\n") if "\n" in end else 0


def _shared(texts: set[str]) -> int:
    """Characters with which all of them begin."""
    first, last = min(texts), max(texts)  # what these two share, those between them have too
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def question(prompt: str, begin: int, end: int) -> str:
    """
    What a prompt asks, in one line.

    Args:
        prompt (`str`): As text.
        begin, end (`int`): Characters of it that other prompts have too.
    """
    asked = prompt[begin : len(prompt) - end] if begin + end < len(prompt) else prompt
    line = " ".join(MARK.sub(" ", asked).split())
    return line if len(line) <= QUESTION_LENGTH else line[: QUESTION_LENGTH - 1] + "…"


def _tidy(value: Any) -> Any:
    if isinstance(value, list):
        return [_tidy(part) for part in value]
    if isinstance(value, dict):
        return {name: _tidy(part) for name, part in value.items()}
    return _number(value) if isinstance(value, float) else value


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
