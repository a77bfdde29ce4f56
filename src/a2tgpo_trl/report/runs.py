"""The folders of runs: which of the three things that training writes each of them has."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..records import FOLDER, RecordStore, read_batches
from .completions import completion_files, read_completions

RECORDS = "turn records"
COMPLETIONS = "completions tables"
STATE = "trainer_state.json"
SEED = re.compile(r"[-_/]?seed[-_=]?\d+")
"""The part of a run's name that says its seed."""


@dataclass(frozen=True)
class Run:
    """
    A run.

    Attributes:
        name (`str`): What tells it from the other runs of the report: the end of its path.
        folder (`Path`): Its `output_dir`.
        source (`str`, *optional*): Where its rollouts are from, `"turn records"` or `"completions tables"`; `None` if it
            has neither.
        log (`list[dict]`): Rows of the trainer's log, oldest first.
        notes (`tuple[str]`): What is missing, a sentence each.
    """

    name: str
    folder: Path
    source: str | None
    log: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """
        The turns, a generation batch at a time, oldest first.

        Args:
            columns (`Sequence[str]`, *optional*): Those to read, of `records.SCHEMA`; by default all.
        """
        if self.source == RECORDS:
            yield from read_batches(self.folder, columns)
        elif self.source == COMPLETIONS:
            for table in read_completions(self.folder, _reward_names(self.log)):
                yield table if columns is None else table.select(list(columns))

    def logged(self) -> dict[str, tuple[list[float], list[float]]]:
        """Steps and values of each key of the log; what is no number is left out."""
        columns: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.log:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(row["step"])
                    values.append(value)
        return columns


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """
    Runs by their folders.

    Args:
        folders (`Sequence[Path]`): The `output_dir` of each.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing of a run in it.
        ValueError: If a folder is named twice.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder: name the output_dir of a run.")
        if places.count(place) > 1:
            raise ValueError(f"{folder} is named twice: name each run once.")
    return [_read(folder, name) for folder, name in zip(folders, _names(places), strict=True)]


def _read(folder: Path, name: str) -> Run:
    log, notes = _read_log(folder)
    source = None
    if RecordStore(folder / FOLDER, 0).files():
        source = RECORDS
    elif completion_files(folder):
        source = COMPLETIONS
        notes.append(
            f"No turn records in {FOLDER}/: rollouts are from completions/, where beliefs, stop reasons, seconds of tools and "
            "the ends of clip ranges are missing, and the reward is the plain sum of the rewards."
        )
        if not _reward_names(log):
            notes.append("No log names the rewards: every column of numbers in completions/ counts as one.")
    elif log:
        notes.append(f"No turn records in {FOLDER}/ and no completions/: there are curves, and no rollouts.")
    else:
        state = (
            f"no rows in a {STATE}. {' '.join(notes)}"
            if _states(folder)
            else f"no {STATE}, in it or in a checkpoint-*."
        )
        raise FileNotFoundError(
            f"{folder} holds nothing of a run: no {FOLDER}/*.parquet, no completions/completions_*.parquet and {state}"
        )
    return Run(name, folder, source, log, tuple(notes))


def _read_log(folder: Path) -> tuple[list[dict], list[str]]:
    """Rows of the log of the latest trainer state that can be read, and what is to be said of it."""
    files = _states(folder)
    records = RecordStore(folder / FOLDER, 0).files()
    begin = _written(records[0]) if records else None  # of the run: thinning keeps its first record
    notes = []
    for file in files:
        name, written = file.relative_to(folder).as_posix(), _written(file)
        if begin is not None and written is not None and written < begin:
            notes.append(
                f"{name} is older than the first turn record: it is of an earlier run, or lost its time when it was copied "
                "(cp -a keeps it). Entropy, loss and clip shares are missing."
            )
            return [], notes
        try:
            # What is infinite, such as the norm of a gradient that overflowed, is not drawn
            state = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: math.nan)
            return [row for row in state["log_history"] if "step" in row], notes
        except FileNotFoundError:  # a checkpoint that training has just deleted
            continue
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"{name} cannot be read ({type(error).__name__}).")
    if not files:
        notes.append(f"No {STATE}, in the folder or in a checkpoint-*: entropy, loss and clip shares are missing.")
    return [], notes


def _reward_names(log: Sequence[dict[str, Any]]) -> set[str]:
    """Of the reward functions, as the log has them; empty where it has none."""
    return {match[1] for row in log for key in row if (match := re.fullmatch("rewards/(.+)/mean", key))}


def _states(folder: Path) -> list[Path]:
    """Trainer states, newest first; of those written at once the one of the latest step."""
    times = {file: _written(file) for file in (folder / STATE, *folder.glob(f"checkpoint-*/{STATE}"))}

    def place(file: Path) -> tuple[int, float]:
        step = file.parent.name.removeprefix("checkpoint-")
        return times[file], int(step) if file.parent != folder and step.isdecimal() else math.inf

    return sorted((file for file, written in times.items() if written is not None), key=place, reverse=True)


def _written(file: Path) -> int | None:
    """When a file was written, in ns; `None` if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _names(places: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others, and from those that differ in more than their seed."""
    names = []
    for place in places:
        depth = 1
        while any(_are_confused(place, other, depth) for other in places if other != place):
            depth += 1
        names.append(_end(place, depth))
    return names


def _are_confused(place: Path, other: Path, depth: int) -> bool:
    """Whether two runs have one name, or are seeds of one name and not of one run."""
    names, paths = (_end(place, depth), _end(other, depth)), (str(place), str(other))
    return names[0] == names[1] or (_without_seed(*names) and not _without_seed(*paths))


def _without_seed(one: str, other: str) -> bool:
    """Whether two names or paths differ in nothing but their seed."""
    return SEED.sub("", one) == SEED.sub("", other)


def _end(place: Path, depth: int) -> str:
    return "/".join(place.parts[-depth:])
