"""Tool calls in the form of the model's chat template."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.chat_template_utils import parse_response

from ..pictures import pictures_in
from ..tools.calls import ToolCall
from ..tools.results import valid_text
from .base import Message, ToolProtocol
from .contents import as_text, fit, map_texts, plain_texts
from .markup import TOOL, WORD, CallForm, Markup, control_tokens, render_call, safe_name, tags_in, without_brackets
from .parsing import warn_unparsable


class ChatProtocol(ToolProtocol):
    """
    The chat template's own tool calls, read by TRL's parser and written by TRL's template code.

    A turn that begins a call which cannot be read counts as a call with an error, unless a budget cut it.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): With a template that TRL can parse.
        observation_ids (`Callable`): TRL's `_get_tool_suffix_ids`.
        eos_token_ids (`list[int]`, *optional*): Tokens that end a turn; default is the tokenizer's one.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        observation_ids: Callable[[list[Message]], list[int]],
        eos_token_ids: list[int] | None = None,
    ):
        super().__init__(processing_class, eos_token_ids)
        self._observation_ids = observation_ids
        self._marks_of_template = lru_cache(maxsize=256)(self._count_marks_of_template)

    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> tuple[Message, list[ToolCall]]:
        text = {"role": "assistant", "content": self.tokenizer.decode(ids, skip_special_tokens=True)}
        try:
            message = parse_response(self.tokenizer, ids, prefix=prefix, tools=schemas)
            calls = [_read_call(call) for call in message.get("tool_calls") or []]
        except Exception as error:  # a model writes what it likes, and no turn may end the run
            warn_unparsable(error)
            message, calls = text, []
        if not calls and self._call_form is not None and self.is_complete(ids):
            # What was not parsed has lost its special tokens, the tags of the call among them. What was parsed counts as
            # written outside of the thinking, if there is anything
            parsed = message != text and str(message.get("content") or "")
            written = parsed or self._decode([token for token in ids if token not in self._eos_token_ids])
            if self._call_form.opening in written:
                calls = [ToolCall("unknown", error=self._call_form.error(written))]
        return message, calls

    def observe(self, messages: list[Message], max_tokens: int | None = None) -> tuple[list[Message], list[int]]:
        self.check_pictures(messages)
        return fit(messages, max_tokens, self._write, self._quote, self.tokenizer)

    def _write(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        failure = None
        for rewritten in (self._quoted, self._plain, self._withheld):
            try:
                shown = [rewritten(message) for message in messages]
                ids = self._observation_ids(shown)
                if self._count_marks(ids) <= self._expected_marks(shown) and self._holds_pictures(ids, shown):
                    return shown, ids
            except Exception as error:  # templates raise whatever they like over a content or a name
                failure = error
        what = "the pictures of a tool: set tool_protocol='tags'" if pictures_in(messages) else "the result of a tool"
        raise ValueError(f"The chat template cannot render {what}.") from failure

    def _holds_pictures(self, ids: list[int], messages: list[Message]) -> bool:
        pictures = pictures_in(messages)
        return not pictures or self.pictures.count(ids) == len(pictures)

    def _quoted(self, message: Message) -> Message:
        content = message["content"] if isinstance(message["content"], str | list) else as_text(message["content"])
        return {**message, "name": safe_name(message.get("name")), "content": map_texts(self._quote, content)}

    def _plain(self, message: Message) -> Message:
        content = plain_texts(lambda text: without_brackets(self._quote(text)), message["content"])
        return {**message, "name": "unknown", "content": content}

    def _withheld(self, message: Message) -> Message:
        content = plain_texts(lambda text: "(a result that cannot be shown)", message["content"])
        return {**message, "name": "unknown", "content": content}

    def _quote(self, text: str) -> str:
        return self._markup.defuse(valid_text(text))

    def _expected_marks(self, messages: list[Message]) -> int:
        """How much markup the template itself writes around results like these."""
        if all(isinstance(message["content"], str) for message in messages):
            return self._marks_of_template(tuple(message["name"] for message in messages))
        return self._count_marks(
            self._observation_ids([{**m, "content": map_texts(_unless_word, m["content"])} for m in messages])
        )

    def _count_marks_of_template(self, names: tuple[str, ...]) -> int:
        return self._count_marks(self._observation_ids([_message(name) for name in names]))

    def _count_marks(self, ids: list[int]) -> int:
        unknown = self.tokenizer.unk_token_id  # stands for odd characters, and controls nothing
        known = ids if unknown in self._eos_token_ids else [token for token in ids if token != unknown]
        return self._markup.count(self._decode(known))

    @cached_property
    def _markup(self) -> Markup:
        rendered = render_call(self.processing_class)
        for number in (2, 1):  # some templates take one result at a time
            with suppress(Exception):
                rendered += self._decode(self._observation_ids([_message(TOOL)] * number))
        return Markup(control_tokens(self.tokenizer), tags_in(rendered))

    @cached_property
    def _call_form(self) -> CallForm | None:
        return CallForm.of(self.processing_class)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _read_call(call: Any) -> ToolCall:
    if not isinstance(call, dict):
        return ToolCall("unknown", error=f"A tool call must be an object, got {type(call).__name__}.")
    if call.get("type", "function") != "function":
        error = f"Unsupported tool call type: {str(call['type'])[:100]}"
        return ToolCall(safe_name(call.get("name")), error=error)
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        return ToolCall("unknown", error=f"The name of a tool must be a string, got {type(name).__name__}.")
    arguments = function.get("arguments")
    return ToolCall(name, {} if arguments is None else arguments)


def _message(name: str) -> Message:
    return {"role": "tool", "name": name, "content": WORD}


def _unless_word(text: str) -> str:
    return text if text.isidentifier() else WORD  # words say what a block is
