"""What tools return, as text of a bounded length; pictures stay whole."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...integrations.plain import PICTURE_IN_WORDS
from ..pictures import is_picture_block, pictures_in

Message = dict[str, Any]
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
    """
    A result with each text in it changed, but for blocks of pictures; of what is neither text nor a container, its `repr` if that
    changes.
    """
    if isinstance(content, str):
        return change(content)
    if is_picture_block(content):
        return content
    if type(content) is dict:
        return {map_texts(change, key): map_texts(change, value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(map_texts(change, element) for element in content)
    shown = repr(content)
    return content if (changed := change(shown)) == shown else changed


def text_blocks(content: Any) -> list[dict[str, Any]]:
    """A result that holds pictures as blocks of pictures and of text alone."""
    return [
        block if is_picture_block(block) or _is_text_block(block) else {"type": "text", "text": as_text(block)}
        for block in content
    ]


def holds_pictures(content: Any) -> bool:
    """Whether a result holds pictures, and is a list of blocks then."""
    return bool(pictures_in([{"content": content}]))


def in_words(content: list[Any]) -> str:
    """The text of a result that holds pictures, with words where they stand."""
    return "".join(PICTURE_IN_WORDS if is_picture_block(block) else block["text"] for block in text_blocks(content))


def plain_texts(change: Callable[[str], str], content: Any) -> str | list[dict[str, Any]]:
    """What `str` says of a result, changed; of one that holds pictures each text between them."""
    if not holds_pictures(content):
        return change(as_text(joined_blocks(content)))
    return [
        block if is_picture_block(block) else {**block, "text": change(block["text"])}
        for block in text_blocks(content)
    ]


def _texts(content: Any) -> list[str]:
    """The parts of a result that may be cut."""
    if not holds_pictures(content):
        return [as_text(joined_blocks(content))]
    return [block["text"] for block in text_blocks(content) if not is_picture_block(block)]


def _with_texts(content: Any, texts: Sequence[str | None]) -> Any:
    """A result with other texts; `None` leaves the one it has."""
    if not holds_pictures(content):
        return content if texts[0] is None else texts[0]
    left = iter(texts)
    shown = []
    for block in text_blocks(content):
        text = None if is_picture_block(block) else next(left)
        shown.append(block if text is None else {**block, "text": text})
    return shown


LEFT_OUT = "[image left out]"
"""What stands for a picture for which there is no room."""


def _without_last_picture(messages: list[Message]) -> list[Message]:
    """The messages with words in place of the last picture in them."""
    last = max(i for i, message in enumerate(messages) if holds_pictures(message["content"]))
    content = [*messages[last]["content"]]
    place = max(i for i, block in enumerate(content) if is_picture_block(block))
    content[place] = {"type": "text", "text": LEFT_OUT}
    return [*messages[:last], {**messages[last], "content": content}, *messages[last + 1 :]]


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
    Write results so that they have a bounded number of tokens. Long texts are cut, and end by saying so. Pictures stay whole; those
    for which there is no room are left out, the last ones first, and words stand in their place.

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
    while True:
        written = _fit_texts(messages, max_tokens, write, quote, tokenizer)
        if len(written[1]) <= max_tokens or not pictures_in(messages):
            return written
        messages = _without_last_picture(messages)


def _fit_texts(
    messages: list[Message],
    max_tokens: int,
    write: Write,
    quote: Callable[[str], str],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Message], list[int]]:
    """[`fit`] where only texts can be cut."""
    texts_of = [_texts(message["content"]) for message in messages]
    texts = [text for texts in texts_of for text in texts]
    limit = CHARACTERS_PER_TOKEN * max(max_tokens, 1)
    if all(len(text) <= limit for text in texts):
        written = write(messages)
        if len(written[1]) <= max_tokens:
            return written

    def write_texts(texts: list[str | None]) -> tuple[list[Message], list[int]]:
        """The messages with other texts, and their own where there is none."""
        left = iter(texts)
        parts = [[next(left) for _ in own] for own in texts_of]
        contents = [_with_texts(m["content"], part) for m, part in zip(messages, parts, strict=True)]
        return write([{**m, "content": content} for m, content in zip(messages, contents, strict=True)])

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
