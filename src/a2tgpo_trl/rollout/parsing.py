"""Parsers that fail in the one way that TRL expects."""

from collections.abc import Callable
from functools import wraps
from typing import Any


def raising_value_errors(parse: Callable[..., Any]) -> Callable[..., Any]:
    """
    A parser of turns that raises `ValueError` where it raised anything else, such as `RecursionError` over JSON that is
    nested too deeply: TRL takes a turn that raises `ValueError` for plain text, and ends the run over others.
    """

    @wraps(parse)
    def parse_or_refuse(*args: Any, **kwargs: Any) -> Any:
        try:
            return parse(*args, **kwargs)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return parse_or_refuse
