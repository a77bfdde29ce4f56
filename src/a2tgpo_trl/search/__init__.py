"""Tools that a search agent calls."""

from .bm25 import BM25Search
from .dense import DenseSearch
from .http import HTTPSearch
from .opening import open_search
from .tool import PassageSearch

__all__ = ["BM25Search", "DenseSearch", "HTTPSearch", "PassageSearch", "open_search"]
