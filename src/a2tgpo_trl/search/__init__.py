"""Tools that a search agent calls."""

from .bm25 import BM25Search
from .dense import DenseSearch
from .http import HTTPSearch

__all__ = ["BM25Search", "DenseSearch", "HTTPSearch"]
