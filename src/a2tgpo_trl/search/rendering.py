"""Found passages as the text that a model reads."""

import itertools
import re
from collections.abc import Sequence

from .words import UNSPACED

WORD = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")
"""What `max_words` counts: in scripts without spaces each character, with the marks and punctuation after it."""


def render(passages: Sequence[dict], show_titles: bool, max_words: int | None, deduplicate: bool) -> str:
    """Write passages one below the other.

    Args:
        passages (`Sequence[dict]`):
            Passages with `"title"` and `"text"`, best first.
        show_titles (`bool`):
            Numbered, `(1) title: text`; or with `False` the bare texts.
        max_words (`int`, *optional*):
            Longest text in words, in scripts without spaces in characters; a longer one is cut there and ends with `…`.
            `None`: whole.
        deduplicate (`bool`):
            Leave out a passage that would look like one before it, number aside.

    Returns:
        `str`: a line for each passage; more where texts have line breaks.
    """
    shown = [_shown(passage["title"] if show_titles else "", _cut(passage["text"], max_words)) for passage in passages]
    if deduplicate:
        shown = list(dict.fromkeys(shown))
    if show_titles:
        shown = [f"({rank}) {passage}" for rank, passage in enumerate(shown, start=1)]
    return "\n".join(shown)


def _shown(title: str, text: str) -> str:
    return f"{title}: {text}" if title else text


def _cut(text: str, max_words: int | None) -> str:
    if max_words is None:
        return text
    ends = [word.end() for word in itertools.islice(WORD.finditer(text), max_words + 1)]
    return text if len(ends) <= max_words else f"{text[: ends[-2]]} …"
