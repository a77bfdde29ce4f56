"""Turn records on disk: a folder of Parquet files, one for each generation batch."""

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .schema import SCHEMA

FOLDER = "turns"
"""Of a run's `output_dir`."""


class RecordStore:
    """
    Files of turn records, complete or not there.

    Args:
        folder (`Path`): Where they lie; made when the first one is written.
        max_bytes (`int`): Above this, every second batch of those kept is dropped, so that the records go on to cover the
            whole run. The first and the last batch stay.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes

    def files(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.folder.glob("[0-9]*-[0-9]*.parquet"))

    def next_batch(self) -> int:
        """Number of the next generation batch."""
        files = self.files()
        return _place(files[-1])[1] + 1 if files else 0

    def append(self, rows: list[dict[str, Any]]) -> None:
        """
        Write the turns of a generation batch.

        Args:
            rows (`list[dict]`): By column of [`SCHEMA`]; not empty, of one step and batch.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{rows[0]['step']:08d}-{rows[0]['batch']:07d}.parquet"
        partial = file.with_suffix(".partial")
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(
            table, partial, compression="zstd", write_statistics=False
        )  # which repeat whole texts and pictures
        partial.replace(file)
        self._keep_within_bounds()

    def drop_from(self, step: int) -> int:
        """Delete what was recorded at a step or later, which a resumed run is about to do again; returns the batches."""
        later = [file for file in self.files() if _place(file)[0] >= step]
        for file in later:
            file.unlink()
        return len(later)

    def set_aside(self) -> Path | None:
        """Move the records of an earlier run out of the way, to `turns-1`, `turns-2`, …; returns where, if there were any."""
        if not self.files():
            return None
        places = (self.folder.with_name(f"{self.folder.name}-{number}") for number in count(1))
        return self.folder.rename(next(place for place in places if not place.exists()))

    def _keep_within_bounds(self) -> None:
        sizes = {file: file.stat().st_size for file in self.files()}
        while sum(sizes.values()) > self.max_bytes and len(sizes) > 2:
            *earlier, _ = sizes
            for file in earlier[1::2]:
                file.unlink()
                del sizes[file]


def _place(file: Path) -> tuple[int, int]:
    """Step and batch, from the name."""
    step, batch = map(int, file.stem.split("-"))
    return step, batch


def read_turns(run: str | Path, columns: Iterable[str] | None = None) -> pa.Table:
    """
    The turn records of a run.

    Args:
        run (`str` or `Path`): Its `output_dir`.
        columns (`Iterable[str]`, *optional*): Those to read, of [`SCHEMA`]; by default all.

    Returns:
        `pyarrow.Table`: a row for each turn, rollout by rollout, oldest first; `.to_pandas()` for a data frame.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file holds something else.
    """
    return pa.concat_tables(read_batches(run, columns))


def read_batches(run: str | Path, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
    """As [`read_turns`], one generation batch at a time."""
    files = RecordStore(Path(run) / FOLDER, 0).files()
    if not files:
        raise FileNotFoundError(f"{run} has no turn records: there is no file in {Path(run) / FOLDER}.")
    names = SCHEMA.names if columns is None else list(columns)
    for file in files:
        try:
            there = pq.read_schema(file).names
            yield _with_schema(pq.read_table(file, columns=[name for name in names if name in there]), names)
        except FileNotFoundError:  # a run that is still training has thinned its records out
            continue
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, KeyError) as error:
            raise ValueError(f"{file} holds no turn records of this version ({error}).") from error


def _with_schema(table: pa.Table, names: list[str]) -> pa.Table:
    """Columns of a table by [`SCHEMA`]; null where records of an earlier version lack one that may be."""
    fields = [SCHEMA.field(name) for name in names]
    columns = [
        table[field.name]
        if field.name in table.column_names or not field.nullable
        else pa.nulls(len(table), field.type)
        for field in fields
    ]
    return pa.table(columns, names=names).cast(pa.schema(fields))
