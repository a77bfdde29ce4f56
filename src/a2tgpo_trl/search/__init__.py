"""Tools that a search agent calls."""

from .bm25 import BM25Search

__all__ = ["BM25Search"]
