"""Tool calls as text between tags."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..pictures import is_picture_block
from ..tools.calls import ToolCall
from ..tools.results import valid_text
from .base import Message, ToolProtocol
from .contents import as_text, fit, holds_pictures, in_words, text_blocks
from .markup import Markup, control_tokens, without_brackets


class TagProtocol(ToolProtocol):
    """
    Calls as text: `<search>query</search>`, answered by `<result>…</result>`.

    A turn ends with the first closing tag of a tool, with the answer, or with another stop string. The text between the
    tags is the tool's one argument.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Any tokenizer; neither template nor special tokens are
            needed. With a processor tools may return pictures.
        tools (`Sequence[Callable]`): Tools that take one string.
        tool_tags (`dict[str, str]`, *optional*): Tag of each tool by its name; default is the name itself.
        result_tag (`str`): Tag around results.
        conversational (`bool`): Whether prompts are lists of messages, and completions are to be.
        eos_token_ids (`list[int]`, *optional*): Tokens that end a turn; default is the tokenizer's one.
        answer_stop (`str`, *optional*): Text that ends the answer, and with it the rollout.

    Raises:
        ValueError: If a tool does not take exactly one string, or one of another name than its namesake, `tool_tags` names no tool, or tags are not distinct.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        tools: Sequence[Callable],
        tool_tags: dict[str, str] | None = None,
        result_tag: str = "result",
        conversational: bool = False,
        eos_token_ids: list[int] | None = None,
        answer_stop: str | None = None,
    ):
        super().__init__(processing_class, eos_token_ids)
        tokenizer = self.tokenizer
        self.result_tag = result_tag
        self.conversational = conversational
        parameters: dict[str, str] = {}
        for tool in tools:
            parameter = _one_string_parameter(tool)
            if parameters.setdefault(tool.__name__, parameter) != parameter:
                raise ValueError(
                    f"With tool_protocol='tags' tools of one name in several environments take the same parameter; "
                    f"{tool.__name__!r} takes {parameters[tool.__name__]!r} here and {parameter!r} there. Rename one."
                )
        unknown = sorted(set(tool_tags or {}) - set(parameters))
        if unknown:
            raise ValueError(f"tool_tags names {unknown}, but the tools are {sorted(parameters)}.")
        self._calls = {(tool_tags or {}).get(name, name): (name, parameters[name]) for name in parameters}
        if len(self._calls) < len(parameters) or result_tag in self._calls:
            raise ValueError(f"Tags must be distinct: tools use {sorted(self._calls)}, results use {result_tag!r}.")
        closing_tags = [f"</{tag}>" for tag in self._calls]
        self.stop_strings = closing_tags + [answer_stop] * (answer_stop not in (None, *closing_tags))
        tags = [f"<{slash}{tag}>" for tag in [*self._calls, result_tag] for slash in ("", "/")]
        in_tags = [token for token in tokenizer.all_special_tokens if any(token in tag for tag in tags)]
        self._hidden = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(in_tags))
        names = "|".join(map(re.escape, self._calls))
        self._closing = re.compile(f"</({names})>")
        self._markup = Markup(tags)

    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> tuple[Message, list[ToolCall]]:
        # A tag may be a special token or have one inside, which decoding would skip
        text = self._decode([token for token in ids if token not in self._hidden])
        message = {"role": "assistant", "content": text}
        closing = self._closing.search(text)
        if closing is None:
            return message, []
        tag = closing.group(1)
        name, parameter = self._calls[tag]
        _, opening, query = text[: closing.start()].rpartition(f"<{tag}>")
        # Without an opening tag there is no argument, and the tool's own error tells the model so
        arguments = {parameter: query.strip()} if opening else {}
        message["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return message, [ToolCall(name, arguments)]

    def observe(self, messages: list[Message], max_tokens: int | None = None) -> tuple[list[Message], list[int]]:
        self.check_pictures(messages)
        messages = [{**message, "content": _blocks_or_text(message["content"])} for message in messages]
        return fit(messages, max_tokens, self._write, self._quote, self.tokenizer)

    def completion(self, messages: list[Message]) -> list[Message] | str:
        if self.conversational:
            return messages
        return "".join(m["content"] if m["role"] == "assistant" else "".join(self._observation(m)) for m in messages)

    def _write(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        shown, ids = [], []
        for message in messages:
            content, content_ids = self._encode_content(message["content"])
            shown.append({**message, "content": content})
            opening, _, closing = self._observation(shown[-1])
            ids += self._encode(opening) + content_ids + self._encode(closing)
        return shown, ids

    def _encode_content(self, content: str | list[dict[str, Any]]) -> tuple[str | list[dict[str, Any]], list[int]]:
        if isinstance(content, str):
            return self._encode_text(content)
        shown, ids = [], []
        for block in content:
            if is_picture_block(block):
                shown.append(block)
                ids += self.pictures.placeholder_ids(block["image"])
            else:
                text, text_ids = self._encode_text(block["text"])
                shown.append({**block, "text": text})
                ids += text_ids
        return shown, ids

    def _encode_text(self, text: str) -> tuple[str, list[int]]:
        for quote in (self._quote, self._quote_all, without_brackets):
            text = quote(text)
            # Special tokens inside a result are text, not control tokens
            ids = self._encode(text, split_special_tokens=True)
            if self._control_ids.isdisjoint(ids) and not self._markup.count(self._decode(ids)):
                break
        return text, ids

    def _quote(self, text: str) -> str:
        # Tags of the protocol inside a result are no tags: a result can neither close itself nor make a call
        return self._markup.defuse(valid_text(text))

    def _quote_all(self, text: str) -> str:
        return Markup(control_tokens(self.tokenizer)).defuse(text)

    def _observation(self, message: Message) -> tuple[str, str, str]:
        return f"\n<{self.result_tag}>", self._quote(_written(message["content"])), f"</{self.result_tag}>\n"

    def _encode(self, text: str, **options) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def _control_ids(self) -> set[int]:
        """Tokens that no result has. The unknown token stands for odd characters, and single characters are text."""
        tokens = [token for token in self.tokenizer.all_special_tokens if len(token.strip()) > 1]
        harmless = {self.tokenizer.unk_token_id} - self._eos_token_ids
        return set(self.tokenizer.convert_tokens_to_ids(tokens)) - harmless


def _blocks_or_text(content: Any) -> str | list[dict[str, Any]]:
    return text_blocks(content) if holds_pictures(content) else as_text(content)


def _written(content: Any) -> str:
    """A result in a completion that is text."""
    return in_words(content) if holds_pictures(content) else as_text(content)


def _one_string_parameter(tool: Callable) -> str:
    parameters = [
        p for p in inspect.signature(tool).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    required = [p for p in parameters if p.default is p.empty]
    taken = required or parameters[:1]
    if len(taken) != 1 or taken[0].annotation not in (str, "str"):
        raise ValueError(
            f"With tool_protocol='tags' a tool takes the text between its tags, one string; {tool.__name__} has "
            f"{inspect.signature(tool)}. Give it one required str parameter, or use tool_protocol='chat'."
        )
    return taken[0].name
