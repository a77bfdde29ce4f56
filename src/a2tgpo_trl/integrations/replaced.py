"""Attributes that have another value for a while: how options reach code of TRL that reads them from its trainer."""

from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(instance: Any, **attributes: Any):
    """
    Give attributes of an object, or methods of its class, other values for a while.

    Raises:
        AttributeError: If there is no such attribute.
    """
    for name in attributes:
        getattr(instance, name)
    own = vars(instance)
    before = {name: own.get(name, _ABSENT) for name in attributes}
    own.update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                del own[name]
            else:
                own[name] = value
