"""Texts as the words that BM25 counts, in any script."""

import functools
import itertools
import re
import unicodedata

# Of scripts that put no spaces between words, and of Hangul, which hangs particles on them
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Burmese
    "\u1100-\u11ff\uac00-\ud7ff"  # Hangul
    "\u1780-\u17ff\u1950-\u1aaf"  # Khmer, Tai Le, New Tai Lue, Tai Tham
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo, radicals
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Yi
)
"""For use inside `[…]` in a regular expression."""
ENGLISH = frozenset((
    "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not",
    "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was",
    "will", "with",
))  # fmt: skip
"""Function words, which are left out; the article "a" is one too."""

_CONTRACTED = r"(?<=\w)['’](?:s|t|d|m|ll|re|ve)\b"  # Lyon's, isn't, we'll: no words
_ARTICLE = re.compile(r"\ba\b|(?:\A|(?<=[.!?:\n]))\W{0,3}\bA(?=\s)")  # unlike the A of vitamin A
_ASCII = re.compile(rf"(\w+)|{_CONTRACTED}")
_LATIN_GREEK_CYRILLIC = "A-Za-z\u00aa-\u02ff\u0370-\u052f\u1c80-\u1c8f\u1d00-\u1dbf\u1e00-\u1fff\u2c60-\u2c7f\ua640-\ua69f\ua720-\ua7ff\uab30-\uab6f"
_ACCENTS = re.compile(
    f"(?<=[{_LATIN_GREEK_CYRILLIC}])[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_INVISIBLE = re.compile("[\u00ad\u180b-\u180f\u200c\u200d\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")


def query_words(text: str) -> list[str]:
    """
    The words of a query: in lower case, Latin, Greek and Cyrillic without accents, no English function words.

    Args:
        text (`str`):
            Anything.

    Returns:
        `list[str]`: words in their order. Where a script puts no spaces between words, each two neighbouring characters are
        one, and so is a character that stands by itself.

    Example:

    ```python
    >>> query_words("Where is Côte d’Ivoire's 3rd city? 東京都")
    ['where', 'cote', 'd', 'ivoire', '3rd', 'city', '東京', '京都']

    ```
    """
    return _words(text, with_characters=False)


def passage_words(text: str) -> list[str]:
    """
    The words of a passage: as [`query_words`], and each character of a script without spaces, so that a query of one finds it.

    Args:
        text (`str`):
            Anything.

    Returns:
        `list[str]`: words in their order.
    """
    return _words(text, with_characters=True)


def _words(text: str, with_characters: bool) -> list[str]:
    text = _ARTICLE.sub(" the", text if text.isascii() else _normalized(text)).lower()
    if text.isascii():
        return [word for word in _ASCII.findall(text) if word and word not in ENGLISH]
    words = []
    for word, run in _any_script().findall(text):
        if run:
            words += _pieces(run, with_characters)
        elif word and word not in ENGLISH:
            words.append(word)
    return words


def _pieces(run: str, with_characters: bool) -> list[str]:
    """Pairs of neighbouring characters, each with its marks; a single character as it is."""
    characters = _character().findall(run)
    pairs = [left + right for left, right in itertools.pairwise(characters)]
    return characters + pairs if with_characters or not pairs else pairs


def _normalized(text: str) -> str:
    """Compatible forms as one, no accents, marks of other scripts joined to their letters."""
    decomposed = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed))


@functools.cache
def _any_script() -> re.Pattern:
    """Runs of a script without spaces, and words, with their marks, which Python's `\\w` leaves out."""
    other = rf"[^\W{UNSPACED}]"
    return re.compile(rf"({other}+(?:[{_marks()}]+{other}*)*)|((?:(?=\w)[{UNSPACED}][{_marks()}]*)+)|{_CONTRACTED}")


@functools.cache
def _character() -> re.Pattern:
    return re.compile(f"[{UNSPACED}][{_marks()}]*")


@functools.cache
def _marks() -> str:
    """Unicode's marks that follow a letter; what stands above them are variation selectors."""
    return "".join(mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.category(mark) in ("Mn", "Mc"))
