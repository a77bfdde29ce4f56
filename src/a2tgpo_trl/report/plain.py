"""Text of models and tools where it could steer what shows it."""

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters and those that turn the direction of a line; tabs and line breaks are none of them."""


def plain(text: str) -> str:
    """The text with `\N{REPLACEMENT CHARACTER}` for each character that could steer a terminal, and for what is no Unicode."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
