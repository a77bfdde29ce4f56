"""Turn records: what every turn of a run wrote, read and earned."""

from .recorder import TurnRecorder
from .rows import RecordedRollout, credit_columns, outcome_columns, turn_rows
from .schema import SCHEMA
from .store import FOLDER, RecordStore, read_batches, read_turns

__all__ = [
    "FOLDER",
    "RecordStore",
    "RecordedRollout",
    "SCHEMA",
    "TurnRecorder",
    "credit_columns",
    "outcome_columns",
    "read_batches",
    "read_turns",
    "turn_rows",
]
