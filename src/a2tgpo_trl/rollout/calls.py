"""A tool call as the model wrote it, and what came of it."""

import inspect
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException


class EndRollout(Exception):
    """
    A tool raises or returns this to end the rollout: the model gets no further turn.

    Args:
        content (`Any`, *optional*): Result of the call, kept in the completion's messages.
    """

    def __init__(self, content: Any = None):
        super().__init__(content)
        self.content = content


@dataclass(frozen=True)
class ToolCall:
    """
    What the model wants to call.

    Attributes:
        name (`str`): The tool.
        arguments (`dict`): By parameter name.
        error (`str`, *optional*): What is wrong with a call that cannot be read; it is not executed.
    """

    name: str
    arguments: Any = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class ToolResult:
    """
    What a call gave.

    Attributes:
        name (`str`): The tool.
        content (`str` or `list`): What the model reads.
        failed (`bool`): Whether `content` is an error.
        ends_rollout (`bool`): Whether the tool said [`EndRollout`].
        seconds (`float`, *optional*): How long the tool ran; `None` if it did not run.
    """

    name: str
    content: str | list
    failed: bool = False
    ends_rollout: bool = False
    seconds: float | None = None

    def message(self) -> dict[str, Any]:
        return {"role": "tool", "name": self.name, "content": self.content}


def argument_error(tool: Callable, arguments: Any) -> str | None:
    """
    Compare the arguments of a call with the tool's JSON schema. Missing and superfluous ones are not looked for: Python's
    own error names them.

    Args:
        tool (`Callable`): A function or bound method; without types or a docstring any argument is right.
        arguments (`Any`): By parameter name.

    Returns:
        `str` or `None`: what is wrong, in words for the model; `None` if nothing is.
    """
    if not isinstance(arguments, Mapping):
        return f"Arguments must be an object of named values, got {type(arguments).__name__}."
    function = getattr(tool, "__func__", tool)
    schemas = _parameter_schemas(function) if isinstance(function, Hashable) else {}
    errors = (_error(value, schemas[name], name) for name, value in arguments.items() if name in schemas)
    return next(filter(None, errors), None)


_TYPES = {
    "string": (str, "a string"),
    "integer": (int, "an integer"),
    "number": (int | float, "a number"),
    "boolean": (bool, "a boolean"),
    "array": (list | tuple, "an array"),
    "object": (Mapping, "an object"),
    "null": (type(None), "null"),
}
_MAX_VALUE = 60
_NO_SCHEMA = (DocstringParsingException, TypeHintParsingException, AttributeError, NameError, TypeError, ValueError)
"""What a tool without types, without a description, with types that do not resolve, or without a signature raises."""


@lru_cache(maxsize=1024)
def _parameter_schemas(function: Callable) -> dict[str, dict[str, Any]]:
    """The JSON schema of each parameter; of none if a type or a description is missing."""
    try:
        schemas = get_json_schema(function)["function"]["parameters"]["properties"]
        parameters = inspect.signature(function).parameters
    except _NO_SCHEMA:
        return {}
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    # Whatever its type, a parameter takes its own default
    return {
        name: {**schemas[name], "nullable": True} if named[name].default is None else schemas[name]
        for name in named.keys() & schemas.keys()
    }


def _error(value: Any, schema: dict[str, Any], path: str) -> str | None:
    """What is wrong with a value, or with one of its parts; `None` if nothing is."""
    if not _fits(value, schema):
        return f"Argument '{path}' must be {_expected(schema)}, got {_shown(value)}."
    if value is None:
        return None
    parts = []
    if isinstance(value, list | tuple):
        items = schema.get("prefixItems") or [schema.get("items")] * len(value)
        parts = [(part, item, f"{path}[{i}]") for i, (part, item) in enumerate(zip(value, items, strict=False))]
    elif isinstance(value, Mapping):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        parts = [(part, known.get(key, others), f"{path}.{str(key)[:_MAX_VALUE]}") for key, part in value.items()]
    # As deep as the schema goes, however deep the value is
    return next(filter(None, (_error(*part) for part in parts if isinstance(part[1], dict))), None)


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema asks for; parts of arrays and objects only count where it is a union."""
    if value is None and schema.get("nullable"):
        return True
    if union := schema.get("anyOf") or schema.get("oneOf"):
        return any(_error(value, choice, "") is None for choice in union)
    types = _types(schema)
    if types and not any(_has_type(value, name) for name in types):
        return False
    # In JSON true is not 1
    choices = [(choice, isinstance(choice, bool)) for choice in schema.get("enum", [value])]
    return (value, isinstance(value, bool)) in choices


def _types(schema: dict[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _has_type(value: Any, name: str) -> bool:
    if name not in _TYPES:
        return True
    if isinstance(value, bool):  # which Python takes for an integer
        return name == "boolean"
    return isinstance(value, _TYPES[name][0])


def _expected(schema: dict[str, Any]) -> str:
    if union := schema.get("anyOf") or schema.get("oneOf"):
        words = list(map(_expected, union))
    elif "enum" in schema:
        words = ["one of " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in schema["enum"])]
    else:
        words = [_TYPES[name][1] if name in _TYPES else name for name in _types(schema)]
        if schema.get("items") and words == ["an array"]:
            words = [f"an array (each element {_expected(schema['items'])})"]
    if schema.get("nullable"):
        words.append("null")
    return " or ".join(dict.fromkeys(words))


def _shown(value: Any) -> str:
    kind = next((name for name in _TYPES if _has_type(value, name)), type(value).__name__)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # no JSON, too many digits, too deep
        return f"something of type {kind}"
    text = text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"
    return text if value is None else f"{text} ({kind})"
