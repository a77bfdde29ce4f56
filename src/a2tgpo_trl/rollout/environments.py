"""Environments whose failures say where they happened."""

from collections.abc import Callable
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
