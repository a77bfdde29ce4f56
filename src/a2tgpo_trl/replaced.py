"""Attributes that have another value for a while: how options reach code of TRL that reads them from its trainer."""

from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(instance: Any, **attributes: Any):
    """Give attributes of an object other values, and back their own on the way out."""
    before = {name: getattr(instance, name) for name in attributes}
    vars(instance).update(attributes)
    try:
        yield
    finally:
        vars(instance).update(before)
