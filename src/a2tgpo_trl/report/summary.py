"""Runs in a few numbers, as tables that every medium writes as they are."""

from dataclasses import dataclass

from .charts import Chart, Series, make_charts
from .formats import compact, fixed, percent, seconds, signed
from .lines import line
from .measures import Measures
from .runs import Run

PARTS = 8
"""A run goes from the first of so many parts to its last."""
PROGRESS = {
    "Reward": ("reward", 0),
    "Turns": ("turns", 0),
    "Gain": ("gain", 0),
    "Turn credit": ("turn-credit-by-step", 0),
    "Answered": ("stop-reasons-1", "answered"),
    "Calls failed": ("failures", -1),
}
"""What a run is summed up by: title → chart and which of its lines, by its place or its name."""


@dataclass(frozen=True)
class Table:
    """
    A table.

    Attributes:
        section (`str`): One of `SECTIONS`.
        title (`str`): What it shows.
        head (`list[str]`): Titles of the columns; the first one names the rows.
        rows (`list[list[str]]`): Cells.
    """

    section: str
    title: str
    head: list[str]
    rows: list[list[str]]


def ends(chart: Chart, series: Series) -> tuple[str, str]:
    """
    Where a line began and where it ended.

    Args:
        chart ([`Chart`]), series ([`Series`]): The line.

    Returns:
        `tuple[str, str]`: its means in the first part of the run and in the last, with the ends of its band.
    """

    def end(part: int) -> str:
        lines = [values for values in (series.y, series.low, series.high) if values is not None]
        mean, *band = (written(line(series.x, values, most=PARTS)[1][part]) for values in lines)
        return f"{mean} ({' to '.join(band)})" if band else mean

    def written(value: float) -> str:
        if chart.y == "seconds":
            return seconds(value)
        return percent(value) if chart.y.startswith("share") else compact(value, digits=3)

    return end(0), end(-1)


def progress(run: Run, measures: Measures) -> dict[str, tuple[str, str]]:
    """
    How a run went.

    Args:
        run ([`Run`]), measures ([`Measures`]): The run.

    Returns:
        `dict`: `"Steps"` and titles of `PROGRESS` → values at both ends of the run; without those that nothing is known of.
    """
    charts = {chart.key: chart for chart in make_charts([run], [measures])}
    found = {
        title: (charts[key], _find(charts[key], which)) for title, (key, which) in PROGRESS.items() if key in charts
    }
    if not found:
        return {}
    steps = [step for _, series in found.values() for step in series.x]
    return {"Steps": (compact(min(steps)), compact(max(steps)))} | {title: ends(*one) for title, one in found.items()}


def _find(chart: Chart, which: int | str) -> Series:
    """A line of a chart; a share that the chart has no line for was 0 throughout."""
    if isinstance(which, int):
        return chart.series[which]
    first = chart.series[0]
    absent = Series(first.run, which, first.x, [0.0] * len(first.x))
    return next((series for series in chart.series if series.name == which), absent)


def tables(measures: Measures) -> list[Table]:
    """Credit by turn index, and tools, where there is anything of them."""
    return [table for table in (_by_turn(measures), _by_tool(measures)) if table.rows]


def _by_turn(measures: Measures) -> Table:
    scored = measures.scored.assign(positive=measures.scored["information_gain"] > 0).astype({"turn": int})
    groups = scored.groupby("turn")
    means = groups[["information_gain", "positive", "advantage", "clip_scale"]].mean()
    rows = [
        [str(turn), f"{count:,}", signed(gain), percent(positive), signed(advantage), fixed(scale)]
        for (turn, gain, positive, advantage, scale), count in zip(means.itertuples(), groups.size(), strict=True)
    ]
    head = ["Turn", "Scored", "Gain", "Gain above 0", "Advantage", "Clip scale"]
    return Table("Credit", "Credit by turn index", head, rows)


def _by_tool(measures: Measures) -> Table:
    rows = []
    for name, calls in sorted(measures.calls.groupby("name"), key=lambda tool: -len(tool[1])):
        ran = calls["seconds"]
        times = [seconds(time) for time in (ran.median(), ran.quantile(0.95), ran.max())]
        rows.append([str(name), f"{len(calls):,}", percent(calls["failed"].mean()), *times])
    return Table("Tools", "Tools", ["Tool", "Calls", "Failed", "Median", "95 % below", "Longest"], rows)


def stop_reasons(measures: Measures) -> str:
    """Shares of the rollouts by stop reason, the most frequent first; empty where none is known."""
    shares = measures.rollouts["stop_reason"].value_counts(normalize=True)
    return ", ".join(f"{reason} {percent(share)}" for reason, share in shares.items())


def notes(run: Run, measures: Measures) -> list[str]:
    """What is to be said of a run: what is missing in its folder, whether it has no gains, and where its log ends."""
    said, turns = list(run.notes), measures.turns
    if len(turns) and not len(measures.scored):
        said.append(
            "No turn has an information gain: no tool was called, no row had a true answer, or the estimator measures none."
        )
        parts = (turns["advantage"] - turns["outcome_advantage"]).dropna().abs()
        if len(parts) and parts.max() < 1e-6:
            said.append("Every turn has the outcome's advantage.")
    if len(turns) and run.log and turns["step"].max() >= (end := run.log[-1]["step"]):
        said.append(f"The log ends at step {end}, and rollouts go on: entropy, loss and clip shares end there.")
    return said
