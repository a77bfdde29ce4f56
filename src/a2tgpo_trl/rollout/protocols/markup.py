"""Text that is more than text to a model: control tokens and the tags of its chat template."""

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

WORD, TOOL = "word_8c41e7", "tool_8c41e7"
"""A content and a tool name that stand for any other where a template is looked at."""

_TAG = re.compile(r"<[^<>\s][^<>\n]*>|\[/?[A-Za-z_]\w*\]")
_TAG_WITH_ATTRIBUTE = re.compile(r"<([\w:.-]+)([=\s])")
_SIMPLE_TAG = re.compile(r"([<\[])/?([\w:.-]+)([>\]])")
_LIKE_MARKUP = re.compile(r"<\S+>|\[\S+\]")
_BRACKETED = (re.compile(r"<[^<>]+>"), re.compile(r"\[[^\[\]]+\]"))
_MAX_NAME = 64


class Markup:
    """
    Strings that a result may quote only in another form.

    Args:
        tokens (`Iterable[str]`): Taken literally. Single characters and white space are left out: they are text.
        tags (`Iterable[str]`): As a template wrote them; they stand for their other half too, `</x>` for `<x>`, and those
            with attributes (`<x=1>`, `<x y="1">`) for those with others.
    """

    def __init__(self, tokens: Iterable[str], tags: Iterable[str] = ()):
        literals, patterns = {token for token in tokens if len(token.strip()) > 1}, set()
        for tag in tags:
            if match := _TAG_WITH_ATTRIBUTE.match(tag):
                name, separator = match.groups()
                patterns.add(re.escape(f"<{name}") + ("=" if separator == "=" else r"\s") + "[^<>]*>")
                literals.add(f"</{name}>")
            elif match := _SIMPLE_TAG.fullmatch(tag):
                opening, name, closing = match.groups()
                literals |= {f"{opening}{name}{closing}", f"{opening}/{name}{closing}"}
            else:
                literals.add(tag)
        bracketed = {literal for literal in literals if any(kind.fullmatch(literal) for kind in _BRACKETED)}
        patterns |= set(map(re.escape, literals - bracketed))
        others = re.compile("|".join(sorted(patterns)) or "(?!)")
        # Some tokenizers have thousands of tokens in brackets, too many for alternatives of a pattern
        self._marks = [(kind, bracketed.__contains__) for kind in _BRACKETED] + [(others, bool)]

    def defuse(self, text: str) -> str:
        """Quote what is markup: `<x>` as `[x]`, `[x]` as `(x)`, anything else with a space after its first letter."""
        while (defused := self._quote_once(text)) != text:  # what was quoted may be markup again
            text = defused
        return text

    def count(self, text: str) -> int:
        return sum(is_mark(found) for pattern, is_mark in self._marks for found in pattern.findall(text))

    def _quote_once(self, text: str) -> str:
        for pattern, is_mark in self._marks:
            text = pattern.sub(
                lambda match, is_mark=is_mark: _quoted(match[0]) if is_mark(match[0]) else match[0], text
            )
        return text


def _quoted(token: str) -> str:
    if len(token) > 2 and token[0] + token[-1] in ("<>", "[]"):
        return f"[{token[1:-1]}]" if token[0] == "<" else f"({token[1:-1]})"
    return re.sub(r"\S", r"\g<0> ", token, count=1)


def without_brackets(text: str) -> str:
    """What is left of a text that is markup to an unusual tokenizer, whatever was done to quote it."""
    return re.sub(r"[<>\[\]|]", "", unicodedata.normalize("NFKC", text))


def safe_name(name: Any) -> str:
    """A tool's name, which the model may have made up, of a form that no template takes for anything else."""
    if not isinstance(name, str) or not name:
        return "unknown"
    name = re.sub(r"[^\w.:/-]+", "_", name[: _MAX_NAME + 1])
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 3] + "..."


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Special tokens, and added tokens that look like markup."""
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special or _LIKE_MARKUP.fullmatch(token.content)}


def tags_in(text: str) -> list[str]:
    """Tag-like strings of a rendered conversation, in their order."""
    return _TAG.findall(text)


def render_call(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> str:
    """A conversation that ends with a call of the tool [`TOOL`]; empty if the template does not render it."""
    for arguments in ({WORD: WORD}, json.dumps({WORD: WORD})):  # some templates only take text (DeepSeek-V3)
        call = {"type": "function", "function": {"name": TOOL, "arguments": arguments}}
        if text := _render(processing_class, {"role": "assistant", "content": "", "tool_calls": [call]}):
            return text
    return ""


def _render(processing_class: PreTrainedTokenizerBase | ProcessorMixin, message: dict[str, Any]) -> str:
    """The rendered conversation; empty where the template, whose code is not ours, fails over it."""
    messages = [{"role": "user", "content": WORD}, message]
    if isinstance(processing_class, ProcessorMixin):
        messages = prepare_multimodal_messages(messages)
    try:
        return processing_class.apply_chat_template(messages, tokenize=False)
    except _TEMPLATE_ERRORS:
        return ""


_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Jinja's own, and what expressions in a template raise."""


@dataclass(frozen=True)
class CallForm:
    """
    How a chat template writes a tool call, to tell the model what is wrong with its own.

    Attributes:
        opening (`str`): Tag that begins calls and stands in no other turn.
        closing (`str`): Tag that ends a call; empty if there is none.
        keys (`tuple[str, str]`, *optional*): Of the tool's name and its arguments, where calls are JSON.
    """

    opening: str
    closing: str
    keys: tuple[str, str] | None

    @classmethod
    def of(cls, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> "CallForm | None":
        """The form of a chat template, `None` if nothing marks its calls."""
        call, answer = render_call(processing_class), _render(processing_class, {"role": "assistant", "content": WORD})
        others = tags_in(answer)
        opening = next((tag for tag in tags_in(call.rpartition(TOOL)[0]) if tag not in others), None)
        if opening is None or not answer:
            return None
        written = call.partition(opening)[2]
        end = next(iter(tags_in(written)), "")
        keys = _json_keys(written.partition(end)[0] if end else written)
        return cls(opening, "" if end in others else end, keys)

    def error(self, text: str) -> str:
        """What is wrong with a turn in which the template's parser found no call, in words for the model."""
        problems = () if self.keys is None else map(self._json_problem, text.split(self.opening)[1:])
        problem = next(filter(None, problems), None)
        if problem is None:
            return "The tool call cannot be read. Write it as told, with the tool's name and its arguments."
        name, arguments = self.keys
        return f'The tool call {problem}. Write {{"{name}": ..., "{arguments}": {{...}}}}.'

    def _json_problem(self, text: str) -> str | None:
        body, closed, _ = text.partition(self.closing) if self.closing else (text, True, "")
        try:
            calls = json.loads(body.strip())
        except RecursionError:
            return "is not valid JSON: it is nested too deeply"
        except ValueError as error:
            return f"is not valid JSON: {error}"
        for call in calls if isinstance(calls, list) and calls else [calls]:
            call = call.get("function", call) if isinstance(call, dict) else call
            if not isinstance(call, dict):
                return "is not a JSON object"
            if self.keys[0] not in call:
                return f'misses the key "{self.keys[0]}"'
            if not isinstance(call[self.keys[0]], str):
                return f'needs a string as "{self.keys[0]}"'
        return None if closed else "is not closed"


def _json_keys(text: str) -> tuple[str, str] | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    call = call[0] if isinstance(call, list) and call else call
    if not isinstance(call, dict):
        return None
    name = next((key for key, value in call.items() if value == TOOL), None)
    arguments = next((key for key, value in call.items() if WORD in str(value)), None)
    return (name, arguments) if name and arguments else None
