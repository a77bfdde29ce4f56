"""From a row of a question set to the columns that a trainer and the rewards read."""

import json
import re

from .layouts import FINAL, Columns, read
from .prompts import PromptForm


def to_example(row: dict, columns: Columns, prompts: PromptForm, keep_ready: bool, where: str) -> dict:
    """Turn a row into one for training.

    Args:
        row (`dict`):
            The row.
        columns (`Columns`):
            Where to read what in it.
        prompts (`PromptForm`):
            How prompts are written.
        keep_ready (`bool`):
            Whether a ready prompt is kept where there is one.
        where (`str`):
            What to call the row in an error.

    Returns:
        `dict`: `"prompt"`; `"answer"`, the aliases; `"question"` and `"data_source"`, `None` where the row has none.

    Raises:
        `ValueError`: the row has no answer, no question or no prompt, or one of a wrong type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {_shown(row)}; a row must be an object with columns.")
    ready = read(row, columns.prompt) if keep_ready else None
    question = _text(row, columns.question, where)
    if ready is None and question is None:
        sought = [path for path in (columns.question, columns.prompt if keep_ready else None) if path] or ["question"]
        raise ValueError(
            f"{where} has no question in {sought}; {_columns(row)}. Name the right ones in columns, or leave the row out."
        )
    example = {
        "prompt": prompts.fill(question) if ready is None else prompts.convert(ready, f"{where}: {columns.prompt!r}"),
        "answer": _aliases(row, columns.answer, where),
        "question": question,
        "data_source": _text(row, columns.data_source, where),
    }
    _refuse_lone_surrogates(example, where)
    return example


def _text(row: dict, path: str | None, where: str) -> str | None:
    value = read(row, path)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {path!r} must be text, got {_shown(value)}.")
    return value.strip() or None if value else None


def _aliases(row: dict, paths: tuple[str, ...], where: str) -> list[str]:
    """The answers at all paths in their order, each once."""
    _refuse_solutions(row, paths, where)
    found = [alias for path in paths for alias in texts(_decoded(read(row, path)), f"{where}: {path!r}")]
    aliases = list(dict.fromkeys(alias.strip() for alias in found if alias.strip()))
    if not aliases:
        values = {path: read(row, path) for path in paths}
        raise ValueError(f"{where} has no answer: {values}; {_columns(row)}. Leave out rows that have none.")
    return aliases


def _refuse_lone_surrogates(example: dict, where: str) -> None:
    """Refuse halves of characters, which JSON can hold where a text was cut within an emoji, and UTF-8 cannot."""
    try:
        json.dumps(example, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{where} has {half!r}, a lone surrogate (half of a character): remove it.") from None


def _refuse_solutions(row: dict, paths: tuple[str, ...], where: str) -> None:
    """Refuse worked solutions as answers: no model would write the same, so every reward would be 0."""
    for path in paths:
        value = read(row, path)
        if isinstance(value, str) and re.search(rf"^{FINAL}", value, re.MULTILINE):
            raise ValueError(
                f"{where}: {path!r} is a worked solution, {_shown(value)}, and the answer is what stands after {FINAL}: set "
                f"columns={{'question': …, 'answer': '{path}.{FINAL}'}}, and leave out rows without that mark."
            )


def texts(value: object, where: str) -> list[str]:
    """A text or a list of texts as a list, empty for `None`.

    Raises:
        `ValueError`: it is anything else.
    """
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"{where} must be text or a list of texts, got {_shown(value)}.")
    return listed


def _decoded(value: object) -> object:
    """A list that was written as JSON text, as PopQA's are; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        decoded = json.loads(value)
    except json.JSONDecodeError:
        return value
    return decoded if isinstance(decoded, list) and all(isinstance(alias, str) for alias in decoded) else value


def _columns(row: dict) -> str:
    return f"its columns are {sorted(row)}"


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:79] + '…'} ({type(value).__name__})"
