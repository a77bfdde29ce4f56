"""How numbers are written, in every medium."""

import math
from collections.abc import Sequence

MISSING = "–"
"""What was not measured."""


def is_number(value: float | None) -> bool:
    """Whether it is neither missing nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, digits: int = 2, sign: str = "") -> str:
    """With so many decimals; `sign="+"` marks positive numbers too."""
    if not is_number(value):
        return MISSING
    rounded = round(value, digits)
    return f"{rounded:{sign}.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def signed(value: float | None) -> str:
    """With two decimals and its sign."""
    return fixed(value, sign="+")


def compact(value: float | None, digits: int = 4) -> str:
    """A number of any size: whole ones as they are, others with so many significant digits."""
    if not is_number(value):
        return MISSING
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", "−")
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}".replace("-", "−")
    return text.rstrip("0").rstrip(".") if decimals else text


def percent(share: float | None) -> str:
    """A share in percent."""
    return f"{fixed(100 * share, 1)} %" if is_number(share) else MISSING


def seconds(value: float | None) -> str:
    """A duration."""
    if not is_number(value):
        return MISSING
    return f"{value:.3g} s" if value >= 1e-3 else "< 0.001 s"


def pair(values: Sequence[float | None], between: str, digits: int = 2) -> str:
    """Two numbers, or a dash if neither was measured."""
    return between.join(fixed(value, digits) for value in values) if any(map(is_number, values)) else MISSING


def count(number: int | None, noun: str) -> str:
    """Such as `"1 turn"` or `"1,200 turns"`; empty where it is not known."""
    return "" if number is None else f"{number:,} {noun}{'' if number == 1 else 's'}"
