"""Cells of typed tables (Parquet, wandb, trackio): values whose type may vary are stored as text."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from transformers.image_utils import is_pil_image

from ..rollout.pictures import digest

CREDIT_COLUMNS = ("information_gain", "turn_reward", "turn_advantages", "clip_scale")
"""Columns of the completions table beside those of the estimator."""
TABLE_COLUMNS = ("step", "prompt", "completion", "advantage", "image", "rewards", *CREDIT_COLUMNS)
"""Names that neither a reward function nor what it logs can have in the completions table."""


def completions_table(logs: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the completions that TRL logs, so that every typed table can hold them.

    Args:
        logs (`dict`): `prompt` and `completion`, columns of texts or of messages, and `extra`, columns by name.

    Returns:
        `dict`: the same. Messages are JSON, in which equal pictures have one name; a column of `extra` is text unless it holds
        booleans, numbers or lists of numbers alone. A number is Python's or NumPy's, and fits a double.
    """
    texts = {name: [_text(cell) for cell in logs[name]] for name in ("prompt", "completion")}
    return logs | texts | {"extra": {name: _column(cells) for name, cells in logs["extra"].items()}}


def as_json(value: Any) -> str:
    """A value as JSON in valid Unicode, whatever a model, a tool or a user put into it."""
    try:
        return encodable(json.dumps(value, ensure_ascii=False, default=_named))
    except (TypeError, ValueError, RecursionError):  # keys that are no text, or a value inside itself
        return encodable(repr(value))


def _named(value: Any) -> str:
    """What is no JSON as text, a picture by its size and its pixels: an address in memory would tell equal ones apart."""
    return f"{value.width}x{value.height} pixels, {digest([value])}" if is_pil_image(value) else str(value)


def encodable(text: str) -> str:
    """The text with `?` for lone surrogates, which JSON allows and UTF-8 does not."""
    return text.encode("utf-8", "replace").decode()


def _column(cells: Iterable[Any]) -> list[Any]:
    cells = [[_plain(item) for item in cell] if isinstance(cell, list) else _plain(cell) for cell in cells]
    kinds = {_kind(cell) for cell in cells if cell is not None}
    return cells if len(kinds) <= 1 and kinds <= {"number", "boolean", "numbers"} else list(map(_text, cells))


def _plain(value: Any) -> Any:
    """Scalars of NumPy as Python's: Arrow takes no two of NumPy's types in one column."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(cell: Any) -> str:
    if isinstance(cell, list) and all(item is None or _is_number(item) for item in cell):
        return "numbers"
    return "boolean" if isinstance(cell, bool) else "number" if _is_number(cell) else "other"


def _is_number(value: Any) -> bool:
    """Whether a double holds the value exactly, as columns need that hold fractions or gaps too."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= 2**53
    return isinstance(value, float)


def _text(cell: Any) -> str | None:
    return encodable(cell) if isinstance(cell, str) else None if cell is None else as_json(cell)
