"""Names that are keys of logs."""

from collections.abc import Collection, Sequence
from itertools import count


def distinct(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """
    Names that can be keys: where one is there already, a number is appended.

    Args:
        names (`Sequence[str]`): Such as those of reward functions, of which lambdas and partials often share one.
        taken (`Collection[str]`): Names that are something else's.

    Returns:
        `list[str]`: in their order; the first of a name keeps it, unless it is taken.

    Example:

    ```python
    >>> distinct(["format", "format", "format_2"])
    ['format', 'format_3', 'format_2']

    ```
    """
    free, found = {name for name in names if name not in taken}, []
    for name in names:
        if name not in free:
            name = next(other for k in count(2) if (other := f"{name}_{k}") not in {*names, *taken, *found})
        free.discard(name)
        found.append(name)
    return found
