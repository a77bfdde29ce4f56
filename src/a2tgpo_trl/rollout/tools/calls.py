"""A tool call as the model wrote it, and what came of it."""

import inspect
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
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
class ToolReward:
    """
    A tool returns this to reward the turn that called it; see [`~rewards.tool_reward`].

    Args:
        content (`Any`): Result of the call, as if it were returned alone.
        reward (`float`): The reward of the call.
    """

    content: Any
    reward: float

    def __str__(self) -> str:
        return str(self.content)  # what TRL's own loop shows the model


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
        timed_out (`bool`): Whether the tool ran too long, or did not run behind one that did.
        reward (`float`, *optional*): What the tool said with [`ToolReward`].
    """

    name: str
    content: str | list
    failed: bool = False
    ends_rollout: bool = False
    seconds: float | None = None
    timed_out: bool = False
    reward: float | None = None

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
    schemas = _schemas(tool)
    errors = (_error(value, schemas[name], name) for name, value in arguments.items() if name in schemas)
    return next(filter(None, errors), None)


def with_integers(tool: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Write `3.0` as `3` where the tool's JSON schema asks for an integer: JSON makes no difference, and Python does.

    Args:
        tool (`Callable`): As for [`argument_error`], which has found nothing wrong.
        arguments (`Mapping`): By parameter name.

    Returns:
        `dict`: the arguments to call the tool with.
    """
    schemas = _schemas(tool)
    return {name: _with_integers(value, schemas.get(name)) for name, value in arguments.items()}


def _schemas(tool: Callable) -> dict[str, dict[str, Any]]:
    function = getattr(tool, "__func__", tool)
    return _parameter_schemas(function) if isinstance(function, Hashable) else {}


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
    if isinstance(value, Mapping):
        parts = [(part, item, f"{path}.{str(key)[:_MAX_VALUE]}") for key, part, item in _parts(value, schema)]
    else:
        parts = [(part, item, f"{path}[{i}]") for i, part, item in _parts(value, schema)]
    # As deep as the schema goes, however deep the value is
    return next(filter(None, (_error(*part) for part in parts if isinstance(part[1], dict))), None)


def _parts(value: Any, schema: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """What an array or an object holds: index or key, value, and its schema if it has one."""
    if isinstance(value, list | tuple):
        items = schema.get("prefixItems") or [schema.get("items")] * len(value)
        return [(i, part, item) for i, (part, item) in enumerate(zip_longest(value, items[: len(value)]))]
    if isinstance(value, Mapping):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        return [(key, part, known.get(key, others)) for key, part in value.items()]
    return []


def _with_integers(value: Any, schema: Any) -> Any:
    if not isinstance(schema, dict):
        return value
    if union := _union(schema):
        return _with_integers(value, next((choice for choice in union if _error(value, choice, "") is None), None))
    if isinstance(value, float):
        return int(value) if _is_integer(value) and _asks_for_integer(schema) else value
    if isinstance(value, Mapping):
        return {key: _with_integers(part, item) for key, part, item in _parts(value, schema)}
    if isinstance(value, list):
        return [_with_integers(part, item) for _, part, item in _parts(value, schema)]
    return value


def _asks_for_integer(schema: dict[str, Any]) -> bool:
    types = _types(schema)
    return "integer" in types and "number" not in types


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema asks for; parts of arrays and objects only count where it is a union."""
    if value is None and schema.get("nullable"):
        return True
    if union := _union(schema):
        return any(_error(value, choice, "") is None for choice in union)
    types = _types(schema)
    if types and not any(_has_type(value, name) for name in types):
        return False
    # In JSON true is not 1
    choices = [(choice, isinstance(choice, bool)) for choice in schema.get("enum", [value])]
    return (value, isinstance(value, bool)) in choices


def _union(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf") or schema.get("oneOf") or []


def _types(schema: dict[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _has_type(value: Any, name: str) -> bool:
    if name not in _TYPES:
        return True
    if isinstance(value, bool):  # which Python takes for an integer
        return name == "boolean"
    return isinstance(value, _TYPES[name][0]) or (name == "integer" and _is_integer(value))


def _is_integer(value: Any) -> bool:
    """Whether JSON Schema takes a number for an integer, whatever its type in Python."""
    return isinstance(value, float) and value.is_integer()


def _expected(schema: dict[str, Any]) -> str:
    if union := _union(schema):
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
    kind = "number" if isinstance(value, float) else kind
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # no JSON, too many digits, too deep
        return f"something of type {kind}"
    text = text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"
    return text if value is None else f"{text} ({kind})"
