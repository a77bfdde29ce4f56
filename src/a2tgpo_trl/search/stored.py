"""Passages in a file, of which only those are read that are asked for."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .passages import as_passage, read_corpus

PASSAGES, OFFSETS = "passages.jsonl", "offsets.npy"


def store_passages(corpus: Path, folder: Path) -> None:
    """Copy a corpus into a folder, with the place of each passage in it.

    Args:
        corpus (`Path`):
            The corpus, see [`read_corpus`].
        folder (`Path`):
            An existing folder.

    Raises:
        `ValueError`: a line is no passage, or there are none.
    """
    ends = [0]
    with open(folder / PASSAGES, "wb") as file:
        for line, _ in read_corpus(corpus):
            ends.append(ends[-1] + file.write(line + b"\n"))
    if len(ends) == 1:
        raise ValueError(f"{corpus} holds no passages; give at least one to search.")
    np.save(folder / OFFSETS, np.array(ends, dtype=np.int64))


class StoredPassages(Sequence):
    """The passages that [`store_passages`] left in a folder, by position.

    The file is mapped into memory: what is read of it, all processes share. Threads may read at once.
    """

    def __init__(self, folder: Path):
        self._offsets = np.load(folder / OFFSETS, mmap_mode="r")  # (P + 1,)
        self._file = folder / PASSAGES
        with open(self._file, "rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> dict:
        if not 0 <= position < len(self):
            raise IndexError(f"There are {len(self)} passages, and none at {position}.")
        line = self._lines[self._offsets[position] : self._offsets[position + 1]]
        return as_passage(json.loads(line), f"{self._file}, line {position + 1}")
