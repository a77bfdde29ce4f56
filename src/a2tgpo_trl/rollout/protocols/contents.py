"""What tools return, as text of a bounded length."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .base import Message

Write = Callable[[list[Message]], tuple[list[Message], list[int]]]

CHARACTERS_PER_TOKEN = 32
"""How far a result is read for each token of room, so that a huge one costs little. Text has fewer in a token."""


def as_text(content: Any) -> str:
    """What `str` says of a result."""
    try:
        return str(content)
    except Exception as error:  # of the tool's own class, too deep, a number of too many digits
        return f"({type(content).__name__} that cannot be shown: {type(error).__name__})"


def joined_blocks(content: Any) -> Any:
    """The text of a result that is made of text blocks; others as they are."""
    if isinstance(content, list) and content and all(map(_is_text_block, content)):
        return "".join(block["text"] for block in content)
    return content


def _is_text_block(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)


def map_texts(change: Callable[[str], str], content: Any) -> Any:
    """A result with each text in it changed; of what is neither text nor a container, its `repr` if that changes."""
    if isinstance(content, str):
        return change(content)
    if type(content) is dict:
        return {map_texts(change, key): map_texts(change, value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(map_texts(change, element) for element in content)
    shown = repr(content)
    return content if (changed := change(shown)) == shown else changed


@dataclass(frozen=True)
class _Excerpt:
    """A result of which a part can be shown: `ends[k]` characters in `k` tokens."""

    text: str
    length: int  # of the whole result
    ends: list[int]
    marker_tokens: int

    @property
    def tokens(self) -> int:
        return len(self.ends) - 1 if self.length == len(self.text) else sys.maxsize

    def cut(self, tokens: int) -> str | None:
        """What is shown of a result that is to be cut, `None` if it is not to be."""
        if self.tokens <= max(tokens, self.marker_tokens):  # a marker is to be shorter than what it stands for
            return None
        shown = self.ends[min(max(tokens - self.marker_tokens, 0), len(self.ends) - 1)]
        return self.text[:shown] + _marker(self.length - shown, self.length)


def _marker(left_out: int, length: int) -> str:
    return f"… [truncated: {left_out} of {length} characters left out]"


def fit(
    messages: list[Message],
    max_tokens: int | None,
    write: Write,
    quote: Callable[[str], str],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Message], list[int]]:
    """
    Write results so that they have a bounded number of tokens. Long ones are cut, and end by saying so.

    Args:
        messages (`list[dict]`): Tool messages.
        max_tokens (`int`, *optional*): Of all results together. Results that need less than an equal share leave the
            rest to the others. Where there is no room at all, what is cut is only its marker.
        write (`Callable`): Messages → the messages as they are shown, and their tokens.
        quote (`Callable`): A text as `write` shows it.
        tokenizer (`PreTrainedTokenizerBase`): Texts are cut between its tokens.

    Returns:
        `tuple[list[dict], list[int]]`: what `write` returned.
    """
    if not messages:
        return [], []
    if max_tokens is None:
        return write(messages)
    texts = [as_text(joined_blocks(message["content"])) for message in messages]
    limit = CHARACTERS_PER_TOKEN * max(max_tokens, 1)
    if all(len(text) <= limit for text in texts):
        written = write(messages)
        if len(written[1]) <= max_tokens:
            return written

    def write_texts(texts: list[str | None]) -> tuple[list[Message], list[int]]:
        """The messages with texts in place of their contents, and their own contents where there is none."""
        return write([m if text is None else {**m, "content": text} for m, text in zip(messages, texts, strict=True)])

    excerpts = [_excerpt(text, limit, quote, tokenizer) for text in texts]
    shortest = [excerpt.cut(0) for excerpt in excerpts]
    overhead = len(write_texts([""] * len(texts))[1])
    available = room = max_tokens - overhead
    while True:
        shares = _fair_shares([excerpt.tokens for excerpt in excerpts], room)
        cut = [excerpt.cut(share) for excerpt, share in zip(excerpts, shares, strict=True)]
        written = write_texts(cut)
        used = len(written[1]) - overhead
        if used <= available or cut == shortest:
            return written
        # Cut texts may have more tokens than they had as parts, and templates may escape them
        room = min(room - 1, room * available // used)


def _excerpt(text: str, limit: int, quote: Callable[[str], str], tokenizer: PreTrainedTokenizerBase) -> _Excerpt:
    shown = quote(text[:limit])
    length = len(shown) + max(len(text) - limit, 0)
    marker = tokenizer(_marker(length, length), add_special_tokens=False)["input_ids"]
    return _Excerpt(shown, length, [0, *_token_ends(shown, tokenizer)], len(marker))


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many characters of a text its first tokens have; the tokens of one character all have the whole of it."""
    options = dict(add_special_tokens=False, split_special_tokens=True, verbose=False)
    if getattr(tokenizer, "is_fast", False):
        return [end for _, end in tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]]
    number = len(tokenizer(text, **options)["input_ids"])  # and it does not tell where they are
    return [len(text) * (i + 1) // number for i in range(number)]


def _fair_shares(needs: list[int], room: int) -> list[int]:
    """Equal shares of the room, but no more than needed."""
    shares = [0] * len(needs)
    smallest_first = sorted(range(len(needs)), key=needs.__getitem__)
    for position, i in enumerate(smallest_first):
        shares[i] = min(needs[i], room // (len(needs) - position))
        room -= shares[i]
    return shares
