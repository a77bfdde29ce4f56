"""How a model calls a tool: with its chat template's own calls, or with text tags."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import add_response_schema, parse_response, supports_tool_calling

Message = dict[str, Any]


class ToolProtocol(ABC):
    """Reads the turns that the model writes and writes the observations that it reads."""

    stop_strings: list[str]
    """Text at which a turn ends besides the end-of-sequence token."""

    def __init__(self):
        self.stop_strings = []

    @abstractmethod
    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> Message:
        """The assistant message of a turn, with its `tool_calls` if there are any."""

    @abstractmethod
    def observation_ids(self, messages: list[Message]) -> list[int]:
        """Tokens of tool results, up to where the model goes on writing."""

    def cut_turn(self, ids: list[int]) -> int:
        """Number of tokens of a turn, what a backend left behind its end not counted."""
        return len(ids)

    def completion(self, messages: list[Message]) -> list[Message] | str:
        """A completion in the form that reward functions get."""
        return messages


class ChatProtocol(ToolProtocol):
    """
    The chat template's own tool calls, read by TRL's parser and written by TRL's template code.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): With a template that TRL can parse.
        observation_ids (`Callable`): TRL's `_get_tool_suffix_ids`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, observation_ids: Callable[[list[Message]], list[int]]):
        super().__init__()
        self.tokenizer = tokenizer
        self._observation_ids = observation_ids

    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> Message:
        return parse_response(self.tokenizer, ids, prefix=prefix, tools=schemas)

    def observation_ids(self, messages: list[Message]) -> list[int]:
        return self._observation_ids(messages)


class TagProtocol(ToolProtocol):
    """
    Calls as text: `<search>query</search>`, answered by `<result>…</result>`.

    A turn ends with the first closing tag of a tool, or another stop string. The text between the tags is the tool's one
    argument.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer; neither template nor special tokens are needed.
        tools (`Sequence[Callable]`): Tools that take one string.
        tool_tags (`dict[str, str]`, *optional*): Tag of each tool by its name; default is the name itself.
        result_tag (`str`): Tag around results.
        conversational (`bool`): Whether prompts are lists of messages, and completions are to be.

    Raises:
        ValueError: If a tool does not take exactly one string, `tool_tags` names no tool, or tags are not distinct.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable],
        tool_tags: dict[str, str] | None = None,
        result_tag: str = "result",
        conversational: bool = False,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.result_tag = result_tag
        self.conversational = conversational
        parameters = {tool.__name__: _one_string_parameter(tool) for tool in tools}
        unknown = sorted(set(tool_tags or {}) - set(parameters))
        if unknown:
            raise ValueError(f"tool_tags names {unknown}, but the tools are {sorted(parameters)}.")
        self._calls = {(tool_tags or {}).get(name, name): (name, parameters[name]) for name in parameters}
        if len(self._calls) < len(parameters) or result_tag in self._calls:
            raise ValueError(f"Tags must be distinct: tools use {sorted(self._calls)}, results use {result_tag!r}.")
        self.stop_strings = [f"</{tag}>" for tag in self._calls]
        tags = [f"<{slash}{tag}>" for tag in [*self._calls, result_tag] for slash in ("", "/")]
        self._hidden = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(tags))
        names = "|".join(map(re.escape, self._calls))
        self._closing = re.compile(f"</({names})>")
        self._any_tag = re.compile(f"<(/?)({names}|{re.escape(result_tag)})>")

    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> Message:
        # A tag may be a special token, which decoding would skip
        text = self.tokenizer.decode([token for token in ids if token not in self._hidden], skip_special_tokens=False)
        message = {"role": "assistant", "content": text}
        closing = self._closing.search(text)
        if closing is not None:
            tag = closing.group(1)
            name, parameter = self._calls[tag]
            _, opening, query = text[: closing.start()].rpartition(f"<{tag}>")
            # Without an opening tag there is no argument, and the tool's own error tells the model so
            arguments = {parameter: query.strip()} if opening else {}
            message["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return message

    def observation_ids(self, messages: list[Message]) -> list[int]:
        ids = []
        for message in messages:
            opening, content, closing = self._observation(message)
            ids += self.tokenizer(opening, add_special_tokens=False)["input_ids"]
            # Special tokens inside a result are text, not control tokens
            ids += self.tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids += self.tokenizer(closing, add_special_tokens=False)["input_ids"]
        return ids

    def cut_turn(self, ids: list[int]) -> int:
        if not self._closes(ids):
            return len(ids)
        shortest, longest = 1, len(ids)
        while shortest < longest:  # whether a prefix holds a stop string is monotone in its length
            middle = (shortest + longest) // 2
            shortest, longest = (shortest, middle) if self._closes(ids[:middle]) else (middle + 1, longest)
        return longest

    def completion(self, messages: list[Message]) -> list[Message] | str:
        if self.conversational:
            return messages
        return "".join(m["content"] if m["role"] == "assistant" else "".join(self._observation(m)) for m in messages)

    def _closes(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return any(string in text for string in self.stop_strings)

    def _observation(self, message: Message) -> tuple[str, str, str]:
        # Tags of the protocol inside a result are no tags: a result can neither close itself nor make a call
        content = self._any_tag.sub(r"[\1\2]", str(message["content"]))
        return f"\n<{self.result_tag}>", content, f"</{self.result_tag}>\n"


def choose_protocol(requested: str, tokenizer: PreTrainedTokenizerBase, conversational: bool) -> str:
    """
    Pick the tool protocol.

    Args:
        requested (`str`): The option `tool_protocol`: `"auto"`, `"chat"` or `"tags"`.
        tokenizer (`PreTrainedTokenizerBase`): Whose chat template decides.
        conversational (`bool`): Whether prompts are lists of messages.

    Returns:
        `str`: `"chat"` or `"tags"`.

    Raises:
        ValueError: If what is requested cannot work with this tokenizer and these prompts.
    """
    if conversational and tokenizer.chat_template is None:
        raise ValueError(
            "Prompts are conversational, but the tokenizer has no chat template, so tools can be called neither by the "
            "template nor by tags. Set tokenizer.chat_template, or give prompts as plain text."
        )
    if requested == "tags":
        return "tags"
    obstacle = _chat_obstacle(tokenizer, conversational)
    if requested == "chat" and obstacle:
        raise ValueError(f"tool_protocol='chat' cannot be used: {obstacle}. Use tool_protocol='tags'.")
    return "tags" if obstacle else "chat"


def _chat_obstacle(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> str | None:
    if not conversational:
        return "prompts are plain text, which no chat template renders"
    if not supports_tool_calling(tokenizer):
        return "the chat template does not render tool calls"
    if getattr(tokenizer, "response_template", None) is None and getattr(tokenizer, "response_schema", None) is None:
        try:
            add_response_schema(tokenizer)
        except ValueError:
            return "TRL does not know the chat template and cannot parse its tool calls"
    return None


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
