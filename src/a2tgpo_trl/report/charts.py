"""What is drawn: curves, distributions and shares, worked out once for the page and for plots."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .curves import CURVES, SECTIONS, STEP, Curve, Lines
from .lines import MOST_LINES, band, histogram, line
from .measures import ROLLOUT, Measures
from .runs import Run


@dataclass(frozen=True)
class Series:
    """
    A line of a chart, or its bars.

    Attributes:
        run (`int`): Number of the run in the report.
        name (`str`): What of the run it shows; empty where a chart shows one thing.
        x (`list`): Numbers in ascending order, or the names of bars.
        y (`list[float]`): As many values.
        low, high (`list[float]`, *optional*): Ends of a band around the line.
    """

    run: int
    name: str
    x: list
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Chart:
    """
    A chart.

    Attributes:
        key (`str`): Short name of letters, digits and dashes; a plot's file is called by it.
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


def make_charts(runs: Sequence[Run], measures: Sequence[Measures]) -> list[Chart]:
    """
    All charts that there is anything to draw for, section by section.

    Args:
        runs, measures (`Sequence`): Of each run of the report.
    """
    logs = [run.logged() for run in runs]
    drawn = [_curve(curve, logs, measures) for curve in CURVES]
    drawn += [_advantages(measures), _turn_credit(measures), _clip_scales(measures), _group_sizes(measures)]
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


def _curve(curve: Curve, logs: Sequence[Lines], measures: Sequence[Measures]) -> Chart:
    series, what = [], curve.what
    for run, (log, measured) in enumerate(zip(logs, measures, strict=True)):
        logged = _matching(log, curve.logged)
        recorded = curve.recorded(measured) if len(measured.turns) else {}
        prefers_turns = bool(recorded) and (curve.prefers_turns or not logged)
        lines = recorded if prefers_turns else _continued(logged, recorded)
        for name, (steps, values) in list(lines.items())[:MOST_LINES]:
            if prefers_turns and curve.has_band:
                x, low, y, high = band(steps, values)
                series.append(Series(run, name, x, y, low, high))
            else:
                series.append(Series(run, name, *line(steps, values)))
        if len(lines) > MOST_LINES:
            what = f"{curve.what} Drawn are the first {MOST_LINES}."
    series = [one for one in series if one.x]
    return Chart(curve.key, curve.section, curve.title, what, STEP, curve.unit, "line", series)


def _distribution(samples: list[tuple[int, str, Sequence[float]]]) -> list[Series]:
    samples = [(run, name, values) for run, name, values in samples if len(values)]
    x, shares = histogram([values for _, _, values in samples])
    return [Series(run, name, x, y) for (run, name, _), y in zip(samples, shares, strict=True)] if x else []


def _advantages(measures: Sequence[Measures]) -> Chart:
    samples = []
    for run, measured in enumerate(measures):
        turns = measured.turns
        samples += [
            (run, "turns before the last", turns["advantage"][~turns["is_last"]]),
            (run, "last turns", turns["advantage"][turns["is_last"]]),
        ]
    return Chart(
        "advantages",
        "Credit",
        "Advantages, whole run",
        "What multiplies the tokens of a turn in the loss. The outermost bins hold what lies beyond.",
        "advantage of a turn",
        "share of turns",
        "histogram",
        _distribution(samples),
    )


def _turn_credit(measures: Sequence[Measures]) -> Chart:
    parts = [measured.scored["advantage"] - measured.scored["outcome_advantage"] for measured in measures]
    return Chart(
        "turn-credit",
        "Credit",
        "Turn credit, whole run",
        "What the gains add to the outcome's advantage, on turns that have a gain. All at 0: the gains of a group hardly "
        "differ.",
        "advantage − outcome advantage",
        "share of turns",
        "histogram",
        _distribution([(run, "", part.dropna()) for run, part in enumerate(parts)]),
    )


def _clip_scales(measures: Sequence[Measures]) -> Chart:
    return Chart(
        "clip-scales",
        "Credit",
        "Clip scale, whole run",
        "How far gains widened (above 1) or narrowed the clip range, on turns that have a gain.",
        "factor of the clip range",
        "share of turns",
        "histogram",
        _distribution([(run, "", measured.scored["clip_scale"].dropna()) for run, measured in enumerate(measures)]),
    )


def _group_sizes(measures: Sequence[Measures]) -> Chart:
    counts = []
    for measured in measures:
        groups = measured.scored.drop_duplicates([*ROLLOUT[:2], "turn"])
        counts.append(groups["turn_group_size"].dropna().astype(int).value_counts(normalize=True))
    sizes = range(1, max([0, *(size for count in counts for size in count.index)]) + 1)
    series = [
        Series(run, "", [str(size) for size in sizes], [round(float(count.get(size, 0)), 6) for size in sizes])
        for run, count in enumerate(counts)
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
