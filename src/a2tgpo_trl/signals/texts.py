"""When two texts count as the same."""

import unicodedata


def normalized(text: str | None) -> str:
    """A text without what makes no other one of it: case, forms of a character, amounts of white space."""
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())
