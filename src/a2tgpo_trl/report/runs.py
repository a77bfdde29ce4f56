"""The folders of runs: which of the three things that training writes each of them has."""

import json
import math
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
            for table in read_completions(self.folder):
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
    elif log:
        notes.append(f"No turn records in {FOLDER}/ and no completions/: there are curves, and no rollouts.")
    else:
        raise FileNotFoundError(
            f"{folder} holds nothing of a run: no {FOLDER}/*.parquet, no completions/completions_*.parquet and no "
            f"{STATE}, in it or in a checkpoint-*."
        )
    return Run(name, folder, source, log, tuple(notes))


def _read_log(folder: Path) -> tuple[list[dict], list[str]]:
    """Rows of the log of the latest trainer state, and what is to be said of it."""
    checkpoints = sorted(folder.glob(f"checkpoint-*/{STATE}"), key=lambda file: file.stat().st_mtime)
    files = [file for file in (folder / STATE, *checkpoints[-1:]) if file.exists()]
    states, notes = [], []
    for file in files:
        try:
            # What is infinite, such as the norm of a gradient that overflowed, is not drawn
            state = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda name: math.nan)
            states.append((file.stat().st_mtime, [row for row in state["log_history"] if "step" in row]))
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"{file.relative_to(folder)} cannot be read ({type(error).__name__}).")
    if not files:
        notes.append(f"No {STATE}, in the folder or in a checkpoint-*: entropy, loss and clip shares are missing.")
    return max(states, key=lambda state: state[0], default=(0, []))[1], notes


def _names(places: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    names = []
    for place in places:
        depth = 1
        while sum(_end(other, depth) == _end(place, depth) for other in places) > 1:
            depth += 1
        names.append(_end(place, depth))
    return names


def _end(place: Path, depth: int) -> str:
    return "/".join(place.parts[-depth:])
