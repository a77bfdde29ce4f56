"""Question files: which ones a path means, and their rows with the place of each."""

import codecs
import glob
import json
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path


def find_files(source: str | PathLike, split: str) -> list[Path]:
    """List the files that a path means.

    Args:
        source (`str` or `PathLike`):
            A file, a pattern such as `"nq/*.jsonl"`, or a folder.
        split (`str`):
            The files of a folder are those that have this word in their name.

    Returns:
        `list[Path]`: in alphabetical order.

    Raises:
        `FileNotFoundError`: there is nothing of that name.
        `ValueError`: a folder has no file of the split, or a file has another format than JSON lines, JSON or Parquet.
    """
    path = Path(source)
    if path.is_dir():
        return _files_of_split(path, split)
    found = [path] if path.exists() else sorted(map(Path, glob.glob(str(source), recursive=True)))
    if not found:
        raise FileNotFoundError(f"source is {str(source)!r}: there is no such file or folder, nor one that matches.")
    for file in found:
        if file.suffix not in READERS:
            raise ValueError(
                f"source is {str(file)!r}; files end in {', '.join(READERS)}. Convert it, or in Python read "
                "it with datasets.load_dataset and give the dataset as source."
            )
    return found


def read_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Read a file row by row; nothing but a JSON array is held in memory as a whole.

    Args:
        path (`Path`):
            The file.

    Yields:
        `tuple[str, object]`: what to call the row in an error, and the row.

    Raises:
        `ValueError`: the file is broken; the error names the file and the line.
    """
    return READERS[path.suffix](path)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    found = [file for file in files if split in re.split(r"[\W_]+", file.stem)]
    if not found:
        raise ValueError(
            f"source is the folder {str(folder)!r}, in which no file is named after split={split!r}; it has "
            f"{[file.name for file in files]}. Name a file, or another split."
        )
    return found


def _read_json(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as lines:
        texts = (line.removeprefix(codecs.BOM_UTF8).strip() for line in lines)
        is_array = next((text.startswith(b"[") for text in texts if text), False)
    return _read_array(path) if is_array else _read_lines(path)


def _read_lines(path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # broken JSON, or no UTF-8
                raise ValueError(f"{path}:{number} is not a line of JSON ({error}): {line.strip()[:80]!r}.") from error
            yield f"{path}:{number}", row


def _read_array(path: Path) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}:{getattr(error, 'lineno', 1)} is not JSON ({error}).") from error
    for index, row in enumerate(rows):
        yield f"{path}, row {index} (from 0)", row


def _read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file ({error}).") from error
    rows = (row for batch in batches for row in batch.to_pylist())
    for index, row in enumerate(rows):
        yield f"{path}, row {index} (from 0)", row


READERS = {".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet}
