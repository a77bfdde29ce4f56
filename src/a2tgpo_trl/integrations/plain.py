"""Removes control characters from the texts of models, tools and data before they are printed."""

import re
from collections import deque
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, except tabs and line breaks, and characters that change the direction of text."""
PICTURE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for a picture in a text."""
PICTURE_IN_WORDS = "[image]"
"""Stands for it where only text is shown."""


def in_words(text: str) -> str:
    """The text with words where pictures stand."""
    return text.replace(PICTURE, PICTURE_IN_WORDS)


def plain(text: str) -> str:
    """The text with `\N{REPLACEMENT CHARACTER}` for control characters and invalid Unicode, and with words for pictures."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", in_words(text).encode("utf-8", "replace").decode())


def plain_parts(value: Any) -> Any:
    """The same for all texts in lists and dictionaries; other values stay as they are."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain_parts(key): plain_parts(part) for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return [plain_parts(part) for part in value]
    return value


def print_plainly(*args: Any, **kwargs: Any) -> None:
    """TRL's table of completions, which cannot steer the terminal."""
    from trl.trainer.utils import print_prompt_completions_sample  # TRL takes seconds to import

    print_prompt_completions_sample(*plain_parts(args), **plain_parts(kwargs))
