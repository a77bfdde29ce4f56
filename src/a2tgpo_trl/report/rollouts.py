"""The rollouts of a run, and what each of them was asked."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from ..integrations.plain import PICTURE, in_words
from .credit import Rollout, shown_rollout
from .measures import ROLLOUT, Measures
from .runs import Run

QUESTION_LENGTH = 240
"""Most characters of a question."""
MARK = re.compile(r"<\|[^|<>]*\|>")
"""A special token of a chat template."""
PICTURE_WITH_MARKUP = re.compile(rf"(\n\n)?<[^<>\s]*>{PICTURE}<[^<>\s]*>(\n\n)?")
"""A picture with what a processor writes around it."""


def read_rollouts(run: Run, chosen: set[tuple[int, int]]) -> Iterator[tuple[list[dict[str, Any]], Rollout]]:
    """
    Rollouts of a run, oldest first.

    Args:
        run ([`Run`]): The run.
        chosen (`set[tuple[int, int]]`): Batch and group of those to read, see [`choose_groups`].

    Returns:
        `Iterator[tuple]`: the turn records of each, and what is shown of it.
    """
    prompts = {prompt for table in run.batches(["prompt"]) for prompt in table["prompt"].unique().to_pylist()}
    begin, end = _frame({_without_pictures(prompt) for prompt in prompts})
    batches = {batch for batch, _ in chosen}
    for table in run.batches():
        if table["batch"][0].as_py() not in batches:
            continue
        thumbnails = {name: file for files in table["thumbnails"].to_pylist() for name, file in files or ()}
        places = zip(table["batch"].to_pylist(), table["group"].to_pylist(), strict=True)
        table = table.drop(["thumbnails"]).filter(pa.array([place in chosen for place in places], pa.bool_()))
        rows = table.sort_by([(name, "ascending") for name in (*ROLLOUT, "turn")]).to_pylist(maps_as_pydicts="lossy")
        for _, group in groupby(rows, key=lambda row: tuple(row[name] for name in ROLLOUT)):
            turns = list(group)
            yield turns, shown_rollout(turns, question(turns[0]["prompt"] or "", begin, end), thumbnails)


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


def _without_pictures(prompt: str) -> str:
    """A prompt of which only some rows have pictures begins as the others do."""
    return PICTURE_WITH_MARKUP.sub("", prompt)


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


def question(prompt: str, begin: int = 0, end: int = 0) -> str:
    """
    What a prompt asks, in one line.

    Args:
        prompt (`str`): As text.
        begin, end (`int`): Characters of it that other prompts have too, pictures left out.
    """
    prompt = _without_pictures(prompt)
    asked = prompt[begin : len(prompt) - end] if begin + end < len(prompt) else prompt
    line = " ".join(MARK.sub(" ", in_words(asked)).split())
    return line if len(line) <= QUESTION_LENGTH else line[: QUESTION_LENGTH - 1] + "…"
