"""Environments: errors that name the row, and answers set by `reset`."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from textwrap import shorten
from typing import Any


def with_named_resets(environment_factory: Any) -> Any:
    """
    The same environments; an error of their `reset` names the row it was given.

    Args:
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*): As [`~trl.GRPOTrainer`] takes it.
    """
    if environment_factory is None:
        return None
    if isinstance(environment_factory, dict):
        return {name: _with_named_reset(factory) for name, factory in environment_factory.items()}
    return _with_named_reset(environment_factory)


def add_answers(rows: Sequence[dict[str, Any]], environments: Sequence[Any], column: str, needed: bool) -> None:
    """
    Give rows without an answer, or with an empty one, what their environment set in `reset` as the attribute `column`.

    Args:
        rows (`Sequence[dict]`, length `B`): Changed in place; all have the column if one has.
        environments (`Sequence`, length `B`): Of the rows, reset.
        column (`str`): The option `answer_column`.
        needed (`bool`): Whether a row without the column is an error.

    Raises:
        ValueError: If an answer is needed, and neither row nor environment has one, not even `None`.
    """
    for row, environment in zip(rows, environments, strict=True):
        given = getattr(environment, column, _ABSENT)
        is_given = given is not _ABSENT and not callable(given)  # which would be a tool of that name
        if is_given and _is_empty(row.get(column)):
            row[column] = given
        elif needed and column not in row:
            raise ValueError(
                f"Information gain needs the true answers, and neither the dataset has a column {column!r} nor does "
                f"{type(environment).__name__}.reset set the attribute {column!r} (None where there is no answer). Add "
                "one of them, or choose an advantage_estimator that needs none, such as 'grpo'."
            )
    if any(column in row for row in rows):
        for row in rows:
            row.setdefault(column, None)


STATE_KEY = "state_key"
"""A method of environments that is no tool: what state they are in, for methods that compare turns from the same state."""


def without_state_keys(tools: Sequence[Callable], standalone: Sequence[Callable]) -> list[Callable]:
    """The tools that a model may call: the standalone ones, and the methods of environments but for `state_key`."""
    return [tool for tool in tools if tool.__name__ != STATE_KEY or tool in standalone]


def state_of(environment: Any) -> str:
    """
    What state an environment is in.

    Args:
        environment (`Any`): With a method `state_key`.

    Raises:
        RuntimeError: If that fails; names the environment.
        TypeError: If it is a coroutine function.
    """
    name = f"{type(environment).__name__}.{STATE_KEY}"
    if inspect.iscoroutinefunction(environment.state_key):
        raise TypeError(f"{name} is a coroutine function, and is asked between turns: make it a plain method.")
    try:
        return str(environment.state_key())
    except Exception as error:
        raise RuntimeError(f"{name} failed: {type(error).__name__}: {error}") from error


_ABSENT = object()


def _is_empty(cell: Any) -> bool:
    """Whether a cell of the answer column holds no answer, or nothing but empty ones."""
    if cell is None:
        return True
    aliases = [cell] if isinstance(cell, str) else cell
    return isinstance(aliases, (list, tuple)) and not any(
        not isinstance(text, str) or text.strip() for text in aliases
    )


def _with_named_reset(factory: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        environment = factory()
        reset = getattr(environment, "reset", None)
        if not callable(reset):
            return environment  # TRL says so

        @wraps(reset)
        def reset_on_row(**row: Any) -> Any:
            try:
                return reset(**row)
            except Exception as error:
                raise RuntimeError(
                    f"{type(environment).__name__}.reset failed on the row {shorten(repr(row), 500)}: "
                    f"{type(error).__name__}: {error}"
                ) from error

        with suppress(AttributeError):  # of a class with slots: its errors name no row
            object.__setattr__(environment, "reset", reset_on_row)
        return environment

    return build
