"""Text to SQL: a tool that reads a SQLite database, and rewards by execution."""

from .database import Database, QueryError
from .rewards import SQLRewards, is_ordered, rows_f1, same_rows

__all__ = ["Database", "QueryError", "SQLRewards", "is_ordered", "rows_f1", "same_rows"]
