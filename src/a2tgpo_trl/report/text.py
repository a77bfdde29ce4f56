"""Runs in a terminal, by rich."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..integrations.plain import plain
from .charts import Chart, Series, make_charts, seed_groups
from .credit import Rollout, Turn, excerpt
from .formats import MISSING
from .lines import line
from .measures import ROLLOUT, Measures
from .rollouts import read_rollouts
from .runs import Run
from .summary import Table, ends, notes, stop_reasons, tables

MOST_CHARACTERS = 600
"""Of a text that are shown."""
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH, CURVE = 20, "First step to last"
"""Characters of a curve, and the title of its column."""


def show(runs: Sequence[Run], measures: Sequence[Measures], console: Console) -> None:
    """
    Print the essentials of each run: its curves, credit by turn index, stop reasons, tools, and two rollouts.

    Args:
        runs, measures (`Sequence`): Of each run.
        console (`Console`): Where to.
    """
    charts = make_charts(runs, measures)
    names = [run.name for run in runs]
    for number, (run, measured) in enumerate(zip(runs, measures, strict=True)):
        console.rule(_text(run.name, "bold"))
        source = run.source or "no records"
        console.print(f"{len(measured.rollouts):,} rollouts, {len(measured.turns):,} turns, from {source}")
        for note in notes(run, measured):
            console.print(_text(note, "yellow"))
        for table in [_curves(charts, names, number), *tables(measured)]:
            if table.rows:
                console.print(_table(table))
        if reasons := stop_reasons(measured):
            console.print(_text(f"Rollouts ended: {reasons}"))
        for title, rollout in _best_and_worst(run, measured):
            _show_rollout(title, rollout, console)


def _curves(charts: Sequence[Chart], names: Sequence[str], run: int) -> Table:
    """The lines over steps, a row each; those of several seeds stand with the first of them."""
    rows = [
        [", ".join(filter(None, (chart.title, series.name))), sparkline(series), *ends(chart, series)]
        for chart in charts
        if chart.kind == "line"
        for series in chart.series
        if series.run == run
    ]
    several = [name for name, numbers in seed_groups(names).items() if len(numbers) > 1 and numbers[0] == run]
    return Table("Learning", ": ".join(["How it went", *several]), ["", CURVE, "First", "Last"], rows)


def sparkline(series: Series) -> str:
    """A line in one row of characters, from its lowest value to its highest."""
    _, values = line(series.x, series.y, most=WIDTH)
    low, high = min(values), max(values)
    most = len(BLOCKS) - 1
    return "".join(BLOCKS[round(most * (value - low) / (high - low)) if high > low else 0] for value in values)


def _best_and_worst(run: Run, measures: Measures) -> Iterable[tuple[str, Rollout]]:
    """The latest of those with the highest and with the lowest reward."""
    ranked = measures.rollouts.dropna(subset="reward").sort_values(["reward", "step"], kind="stable")
    if not len(ranked):
        return
    best = ranked.iloc[-1]
    worst = ranked[ranked["reward"] == ranked["reward"].iloc[0]].iloc[-1]
    places = [tuple(int(row[name]) for name in ROLLOUT) for row in (best, worst)]
    rollouts = read_rollouts(run, {place[:2] for place in places})
    found = {place: one for turns, one in rollouts if (place := tuple(turns[0][name] for name in ROLLOUT)) in places}
    titles = ("Best rollout", "Worst rollout") if places[0] != places[1] else ("A rollout; all have this reward",)
    for title, place in zip(titles, places, strict=False):
        if place in found:  # a run that is still training may have thinned its records out
            yield title, found[place]


def _show_rollout(title: str, rollout: Rollout, console: Console) -> None:
    console.print()
    console.print(_text(f"{title}: {rollout.question}", "bold"))
    console.print(_text(", ".join(f"{name} {value}" for name, value in (rollout.shared | rollout.facts).items())))
    for k, turn in enumerate(rollout.turns):
        head = " · ".join(filter(None, (f"Turn {k}  {turn.credit['advantage']}", turn.kind)))
        console.print(_text(head, f"bold {_style(turn)}"))
        known = [f"{name} {value}" for name, value in list(turn.credit.items())[1:] if value != MISSING]
        console.print(_text(", ".join(known), "italic"))
        console.print(_text(excerpt(turn.text, MOST_CHARACTERS)))
        for call in turn.calls:
            said = ", ".join(filter(None, (call.outcome, call.seconds)))
            console.print(_text(excerpt(f"{call.name} {call.arguments}  {said}", MOST_CHARACTERS), "cyan"))
        if turn.observation:
            console.print(_text(excerpt(turn.observation, MOST_CHARACTERS), "dim"))


def _style(turn: Turn) -> str:
    advantage = turn.drawn["advantage"]
    return "" if advantage is None else "blue" if advantage >= 0 else "dark_orange3"


def _table(table: Table) -> RichTable:
    made = RichTable(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for number, column in enumerate(table.head):
        is_left = number == 0 or column == CURVE
        made.add_column(_text(column), justify="left" if is_left else "right", no_wrap=column == CURVE)
    for row in table.rows:
        made.add_row(*map(_text, row))
    return made


def _text(text: str, style: str = "") -> Text:
    """Text that is no markup, and cannot steer the terminal."""
    return Text(plain(text), style)
