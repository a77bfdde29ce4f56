"""Turn records: what every turn of a run wrote, read and earned."""

from .schema import SCHEMA
from .store import FOLDER, RecordStore, read_batches, read_turns

__all__ = ["FOLDER", "RecordStore", "SCHEMA", "read_batches", "read_turns"]
