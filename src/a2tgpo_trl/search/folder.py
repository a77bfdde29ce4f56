"""Folders that hold an index: there complete or not at all, and recognised when they are opened."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

FORMATS = {"bm25": 2, "dense": 1}
"""The format version of each kind of index; other versions are refused."""
DESCRIPTION = "index.json"


@contextlib.contextmanager
def new_index(folder: Path, description: dict) -> Iterator[Path]:
    """Build an index beside its place, and move it there when it is complete; after an error nothing is left.

    Args:
        folder (`Path`):
            Where the index is to be.
        description (`dict`):
            What [`open_index`] returns; `"kind"`, of [`FORMATS`], is what it checks.

    Raises:
        `FileExistsError`: there is something at that place.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; load it, or delete it to build the index again.")
    partial = folder.with_name(f"{folder.name}.partial-{uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        text = json.dumps({**description, "version": FORMATS[description["kind"]]}, indent=1, ensure_ascii=False)
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_index(folder: Path, kind: str) -> dict:
    """Check that a folder holds an index that this version can read.

    Args:
        folder (`Path`):
            The index.
        kind (`str`):
            Of which kind it must be.

    Returns:
        `dict`: what the index was described as when it was built.

    Raises:
        `FileNotFoundError`: there is no index.
        `ValueError`: the index is of another kind or version.
    """
    description = describe_index(folder)
    if description["kind"] != kind:
        raise ValueError(f"{folder} holds an index of kind {description['kind']!r}, not {kind!r}.")
    if description["version"] != FORMATS[kind]:
        raise ValueError(
            f"{folder} holds a {kind} index of format {description['version']}, and this version of a2tgpo-trl reads "
            f"format {FORMATS[kind]}; delete the folder and build the index again."
        )
    return description


def describe_index(folder: Path) -> dict:
    """What an index was described as when it was built, whatever its kind and version.

    Raises:
        `FileNotFoundError`: there is no index.
    """
    if not (folder / DESCRIPTION).exists():
        raise FileNotFoundError(f"{folder} holds no index: there is no {DESCRIPTION} in it. Build one first.")
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
