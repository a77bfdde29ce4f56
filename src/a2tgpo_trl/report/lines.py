"""Values at steps → lines, bands and histograms, short enough to draw."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

POINTS = 400
"""Most points of a line: what has more steps shows the mean of neighbouring steps."""
MOST_LINES = 8
"""Of a run in a chart."""
BINS = 40
QUANTILES = (0.1, 0.5, 0.9)
"""Of a band: its lower end, its line, its upper end."""
OUTLIERS = 0.005
"""Share of the values at each end that a histogram counts in its outermost bin."""


def step_bins(steps: Sequence[float], most: int) -> pd.Series:
    """
    Consecutive steps, put together where there are too many.

    Args:
        steps (`Sequence[float]`): The step of each value, in any order.
        most (`int`): Bins that there may be.

    Returns:
        `Series`: the bin of each value, from 0; each bin has as many different steps as the others, or one more.
    """
    ranks = pd.Series(np.asarray(steps, dtype=float)).rank(method="dense").astype(int) - 1
    count = int(ranks.max()) + 1 if len(ranks) else 0
    return ranks * most // count if count > most else ranks


def line(steps: Sequence[float], values: Sequence[float], most: int = POINTS) -> tuple[list[float], list[float]]:
    """
    The mean at each step.

    Args:
        steps, values (`Sequence[float]`): In any order; NaN values are left out.
        most (`int`): Points that there may be.

    Returns:
        `tuple`: steps, ascending, and means.
    """
    groups, x = _at_steps(steps, values, most)
    return x, _rounded(groups.mean())


def band(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float], list[float], list[float]]:
    """As [`line`], with the `QUANTILES` at each step instead of the mean: steps, low, middle, high."""
    groups, x = _at_steps(steps, values)
    return x, *(_rounded(groups.quantile(q)) for q in QUANTILES)


def across(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], ...]:
    """As [`band`], of the steps and values of several runs: the lowest of the runs' means, their mean, the highest."""
    steps, values = (np.concatenate([np.asarray(run[part], dtype=float) for run in runs]) for part in (0, 1))
    number = np.repeat(np.arange(len(runs)), [len(run[0]) for run in runs])
    frame = pd.DataFrame({"step": steps, "value": values, "run": number}).dropna()
    frame["bin"] = step_bins(frame["step"], POINTS).to_numpy()
    x = _rounded(frame.groupby("bin")["step"].mean())
    means = frame.groupby(["bin", "run"])["value"].mean().groupby("bin")
    return x, *(_rounded(values) for values in (means.min(), means.mean(), means.max()))


def _at_steps(steps: Sequence[float], values: Sequence[float], most: int = POINTS):
    frame = pd.DataFrame({"step": np.asarray(steps, dtype=float), "value": np.asarray(values, dtype=float)}).dropna()
    bins = step_bins(frame["step"], most).to_numpy()
    return frame["value"].groupby(bins), _rounded(frame["step"].groupby(bins).mean())


def histogram(samples: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """
    Distributions over the same bins.

    Args:
        samples (`Sequence`): Values of each distribution; NaN is left out.

    Returns:
        `tuple`: middles of the bins, and for each distribution the share of its values in each bin; both empty if
        there are no values.
    """
    samples = [np.asarray(values, dtype=float) for values in samples]
    samples = [values[np.isfinite(values)] for values in samples]
    joined = np.concatenate([np.empty(0), *samples])
    if not len(joined):
        return [], []
    low, high = np.quantile(joined, [OUTLIERS, 1 - OUTLIERS])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(values.clip(low, high), edges)[0] / max(len(values), 1) for values in samples]
    return _rounded((edges[1:] + edges[:-1]) / 2), [_rounded(shares) for shares in counts]


def _rounded(values: Sequence[float]) -> list[float]:
    """Six significant digits: more than a screen shows, fewer than a float has."""
    return [float(f"{value:.6g}") for value in values]
