"""Questions and passages: the atlas that ships with the package, question files, and their way to a TRL dataset."""

from .atlas import Atlas, load_atlas
from .loading import DataError, load_questions
from .questions import KEPT_COLUMNS, split_by_entity, to_dataset

__all__ = ["KEPT_COLUMNS", "Atlas", "DataError", "load_atlas", "load_questions", "split_by_entity", "to_dataset"]
