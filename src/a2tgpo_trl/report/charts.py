"""What is drawn: curves, distributions and shares, worked out once for the page and for plots."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .curves import CURVES, SECTIONS, STEP, Curve, Lines, own_curves
from .lines import MOST_LINES, across, band, histogram, line
from .measures import ROLLOUT, Measures
from .runs import SEED, Run


@dataclass(frozen=True)
class Series:
    """
    A line of a chart, or its bars.

    Attributes:
        run (`int`): Number of the run in the report; of runs that differ in their seed, the first.
        name (`str`): What of the run it shows; empty where a chart shows one thing.
        x (`list`): Numbers in ascending order, or the names of bars.
        y (`list[float]`): As many values.
        low, high (`list[float]`, *optional*): Ends of a band around the line: of the outer tenths of what was measured, or
            of runs that differ in their seed.
        is_evaluation (`bool`): Whether it was measured by evaluation: the other lines of the chart are lighter then.
    """

    run: int
    name: str
    x: list
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    is_evaluation: bool = False


@dataclass(frozen=True)
class Chart:
    """
    A chart.

    Attributes:
        key (`str`): Short name that can be part of a file name: a plot's file is called by it.
        section (`str`): One of `SECTIONS`.
        title (`str`): What it shows.
        what (`str`): How to read it, in a sentence.
        x, y (`str`): Names of the axes, with units.
        kind (`str`): `"line"`, `"histogram"`, `"bars"`, or `"shares"`, areas that sum to 1.
        series (`list[Series]`): What there is to draw, run by run.
        run (`int`, *optional*): The run, where a chart shows one run of several.
    """

    key: str
    section: str
    title: str
    what: str
    x: str
    y: str
    kind: str
    series: list[Series]
    run: int | None = None

    @property
    def is_from_zero(self) -> bool:
        """Whether the axis of the values begins at 0."""
        return self.kind != "line" or self.y.startswith("share") or self.y == "seconds"


@dataclass(frozen=True)
class Look:
    """
    How a series looks, and what legends call it.

    Attributes:
        label (`str`): Its name.
        color (`int`): Number of the colour; below 0, from the end.
        dash (`int`): Number of the dashes.
        is_light (`bool`): Whether it stays behind, because others were measured by evaluation.
    """

    label: str
    color: int
    dash: int
    is_light: bool = False


def seed_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """
    Runs that are alike but for their seed.

    Args:
        names (`Sequence[str]`): Of the runs.

    Returns:
        `dict[str, list[int]]`: what they are called together → their numbers; a run by itself keeps its name.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(SEED.sub("", name).strip("/"), []).append(number)
    called = {}
    for name, numbers in groups.items():
        several = ", ".join(filter(None, (name, f"{len(numbers)} seeds")))
        called[several if len(numbers) > 1 else names[numbers[0]]] = numbers
    return called


def looks(chart: Chart, names: Sequence[str]) -> list[Look]:
    """
    How the series of a chart look: runs have the colours, and what is shown of them the dashes; with one run, what is shown
    has the colours.

    Args:
        chart ([`Chart`]): The chart.
        names (`Sequence[str]`): Of the runs.
    """
    called = {numbers[0]: (place, name) for place, (name, numbers) in enumerate(seed_groups(names).items())}
    kinds = list(dict.fromkeys(series.name for series in chart.series))
    has_evaluation = any(series.is_evaluation for series in chart.series)
    if chart.kind == "shares":
        return [Look(series.name, -1 - number, 0) for number, series in enumerate(chart.series)]
    if len(called) == 1:
        (_, name), *_ = called.values()
        labels = [(one.name or name, number, 0) for number, one in enumerate(chart.series)]
    else:
        labels = [
            (" · ".join(filter(None, (called[one.run][1], one.name))), called[one.run][0], kinds.index(one.name))
            for one in chart.series
        ]
    return [
        Look(*label, is_light=has_evaluation and not one.is_evaluation)
        for label, one in zip(labels, chart.series, strict=True)
    ]


def make_charts(runs: Sequence[Run], measures: Sequence[Measures]) -> list[Chart]:
    """
    All charts that there is anything to draw for, section by section.

    Args:
        runs, measures (`Sequence`): Of each run of the report.
    """
    logs = [run.logged() for run in runs]
    groups = list(seed_groups([run.name for run in runs]).values())
    drawn = [_curve(curve, logs, measures, groups) for curve in (*CURVES, *own_curves(measures))]
    pooled = {numbers[0]: Measures.joined([measures[run] for run in numbers]) for numbers in groups}
    drawn += [*(distribution.chart(pooled) for distribution in DISTRIBUTIONS), _group_sizes(pooled)]
    drawn += [_stop_reasons(run, *data) for run, data in enumerate(zip(logs, measures, strict=True))]
    return sorted((chart for chart in drawn if chart.series), key=lambda chart: SECTIONS.index(chart.section))


def _matching(log: Lines, patterns: dict[str, str]) -> Lines:
    """What a log has by keys of these patterns, called by the names that go with them."""
    return {
        match.expand(name): values
        for pattern, name in patterns.items()
        for key, values in log.items()
        if (match := re.fullmatch(pattern, key))
    }


def _continued(logged: Lines, recorded: Lines) -> Lines:
    """Lines of a log, with what was recorded after its end; a log counts a step when it is done, and records before."""
    end = max((max(logged[name][0]) for name in recorded if name in logged), default=-math.inf)
    lines = dict(logged)
    for name, (steps, values) in recorded.items():
        steps, values = np.asarray(steps, dtype=float) + 1, np.asarray(values, dtype=float)
        before = logged.get(name, ([], []))
        lines[name] = [*before[0], *steps[steps > end]], [*before[1], *values[steps > end]]
    return lines


def _curve(curve: Curve, logs: Sequence[Lines], measures: Sequence[Measures], groups: Sequence[list[int]]) -> Chart:
    found = [_lines(curve, log, measured) for log, measured in zip(logs, measures, strict=True)]
    series, what = [], curve.what
    for numbers in groups:
        names = list(dict.fromkeys(name for run in numbers for name in found[run]))
        if len(names) > MOST_LINES:
            what = f"{curve.what} Drawn are the first {MOST_LINES}."
        for name in names[:MOST_LINES]:
            lines = [found[run][name] for run in numbers if name in found[run]]
            series.append(_series(numbers[0], name, lines, curve.has_band and len(measures[numbers[0]].turns) > 0))
    if any(len(numbers) > 1 for numbers in groups):
        what = f"{what} Of several seeds: their mean, and the band from the lowest to the highest."
    series = [one for one in series if one.x]
    return Chart(curve.key, curve.section, curve.title, what, STEP, curve.unit, "line", series)


def _lines(curve: Curve, log: Lines, measured: Measures) -> Lines:
    """What a run's log and its turns tell: the log as far as it goes, unless the turns come first."""
    logged = _matching(log, curve.logged)
    recorded = curve.recorded(measured) if len(measured.turns) else {}
    return recorded if recorded and (curve.prefers_turns or not logged) else _continued(logged, recorded)


def _series(run: int, name: str, lines: Sequence[tuple], has_band: bool) -> Series:
    is_evaluation = name.endswith("evaluation")
    if len(lines) == 1 and not has_band:
        return Series(run, name, *line(*lines[0]), is_evaluation=is_evaluation)
    x, low, middle, high = across(lines) if len(lines) > 1 else band(*lines[0])
    return Series(run, name, x, middle, low, high, is_evaluation)


@dataclass(frozen=True)
class Distribution:
    """A chart of how values are spread over a whole run: `samples` gives them, by what they show; the rest as in [`Chart`]."""

    key: str
    title: str
    what: str
    x: str
    samples: Callable[[Measures], dict[str, pd.Series]]

    def chart(self, measures: dict[int, Measures]) -> Chart:
        """The chart of the runs whose numbers are given."""
        samples = [
            (run, name, values)
            for run, measured in measures.items()
            for name, values in self.samples(measured).items()
            if values.notna().any()
        ]
        x, shares = histogram([values for *_, values in samples])
        series = [Series(run, name, x, y) for (run, name, _), y in zip(samples, shares, strict=True)] if x else []
        return Chart(self.key, "Credit", self.title, self.what, self.x, "share of turns", "histogram", series)


DISTRIBUTIONS = (
    Distribution(
        "advantages",
        "Advantages, whole run",
        "What multiplies the tokens of a turn in the loss. The outermost bins hold what lies beyond.",
        "advantage of a turn",
        lambda measures: {
            "turns before the last": measures.turns["advantage"][~measures.turns["is_last"]],
            "last turns": measures.turns["advantage"][measures.turns["is_last"]],
        },
    ),
    Distribution(
        "turn-credit",
        "Turn credit, whole run",
        "What the gains add to the outcome's advantage, on turns that have a gain. All at 0: the gains of a group hardly "
        "differ.",
        "advantage − outcome advantage",
        lambda measures: {"": measures.turn_credit},
    ),
    Distribution(
        "clip-scales",
        "Clip scale, whole run",
        "How far gains widened (above 1) or narrowed the clip range, on turns that have a gain.",
        "factor of the clip range",
        lambda measures: {"": measures.scored["clip_scale"]},
    ),
)


def _group_sizes(measures: dict[int, Measures]) -> Chart:
    counts = {}
    for run, measured in measures.items():
        groups = measured.scored.drop_duplicates([*ROLLOUT[:2], "turn"])
        counts[run] = groups["turn_group_size"].dropna().astype(int).value_counts(normalize=True)
    sizes = range(1, max([0, *(size for count in counts.values() for size in count.index)]) + 1)
    series = [
        Series(run, "", [str(size) for size in sizes], [round(float(count.get(size, 0)), 6) for size in sizes])
        for run, count in counts.items()
        if len(count)
    ]
    return Chart(
        "group-sizes",
        "Credit",
        "Sizes of turn groups",
        "How many rollouts of a prompt reached the same turn index. Groups of 1 have nothing to compare with and add "
        "no credit, unless gains are normalised over all turns of the prompt or not at all.",
        "scored members of a turn group",
        "share of turn groups",
        "bars",
        series,
    )


def _stop_reasons(run: int, log: Lines, measured: Measures) -> Chart:
    logged = _matching(log, {r"rollout/stop/(.+)": r"\1"})
    reasons = measured.rollouts["stop_reason"].dropna()
    steps = measured.rollouts["step"][reasons.index]
    names = dict.fromkeys([*logged, *reasons])
    shares = {name: (steps, reasons == name) for name in names}
    if logged:  # every share at every step
        at = next(iter(logged.values()))[0]
        shares = _continued({name: logged.get(name, (at, [0.0] * len(at))) for name in names}, shares)
    lines = {name: line(*values) for name, values in shares.items()}
    lines = sorted(((name, x, y) for name, (x, y) in lines.items() if any(y)), key=lambda one: -sum(one[2]))
    return Chart(
        f"stop-reasons-{run + 1}",
        "Rollouts",
        "Stop reasons",
        "Why rollouts ended. Anything but answered means that a limit or a tool ended them.",
        STEP,
        "share of rollouts",
        "shares",
        [Series(run, *one) for one in lines],
        run,
    )
