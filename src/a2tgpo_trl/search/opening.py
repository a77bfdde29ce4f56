"""Built indexes of any kind."""

from pathlib import Path

from . import bm25, dense
from .bm25 import BM25Search
from .dense import DenseSearch
from .folder import describe_index
from .tool import PassageSearch

KINDS = {bm25.KIND: BM25Search, dense.KIND: DenseSearch}


def open_search(folder: str | Path, **options) -> PassageSearch:
    """Open an index that [`BM25Search.build`] or [`DenseSearch.build`] wrote.

    Args:
        folder (`str | Path`):
            The index, which says itself of which kind it is.
        options (`Any`):
            `top_k`, `show_titles`, `max_words` and `deduplicate`, as for the constructors.

    Returns:
        `PassageSearch`: a [`BM25Search`] or a [`DenseSearch`].

    Raises:
        `FileNotFoundError`: there is no index in the folder.
        `ImportError`: a library that the kind needs is not installed.
        `ValueError`: the index is of a kind or format that this version does not know.
    """
    kind = describe_index(Path(folder))["kind"]
    if kind not in KINDS:
        raise ValueError(f"{folder} holds an index of kind {kind!r}; this version knows {', '.join(KINDS)}.")
    return KINDS[kind].load(folder, **options)
