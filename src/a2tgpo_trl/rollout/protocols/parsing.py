"""Parsers that fail in the one way that TRL expects."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


def warn_unparsable(error: Exception) -> None:
    """Say once for each kind of error that a turn is taken for plain text over it."""
    logger.warning_once(f"A turn counts as plain text, because its parser raised {type(error).__name__}.")


def raising_value_errors(parse: Callable[..., Any]) -> Callable[..., Any]:
    """
    A parser of turns that raises `ValueError` where it raised, for instance, `RecursionError` over JSON that is nested too
    deeply: TRL takes a turn for plain text over `ValueError` and `TypeError`, and ends the run over any other error.
    """

    @wraps(parse)
    def parse_or_refuse(*args: Any, **kwargs: Any) -> Any:
        try:
            return parse(*args, **kwargs)
        except (ValueError, TypeError):  # malformed, as models write
            raise
        except Exception as error:
            warn_unparsable(error)
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return parse_or_refuse
