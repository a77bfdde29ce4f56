"""Runs in a terminal, by rich."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..integrations.plain import plain
from .measures import ROLLOUT, Measures
from .rollouts import Rollout, read_rollouts
from .runs import Run
from .summary import PROGRESS, by_tool, by_turn, notes, progress, stop_reasons

ROWS = 8
"""Of the table over steps."""
MOST_CHARACTERS = 600
"""Of a text that are shown."""


def show(runs: Sequence[Run], measures: Sequence[Measures], console: Console) -> None:
    """
    Print the essentials of each run: how it went, credit by turn index, stop reasons, tools, and two rollouts.

    Args:
        runs, measures (`Sequence`): Of each run.
        console (`Console`): Where to.
    """
    for run, measured in zip(runs, measures, strict=True):
        console.rule(_text(run.name, "bold"))
        console.print(
            _text(
                f"{len(measured.rollouts):,} rollouts, {len(measured.turns):,} turns, from {run.source or 'no records'}"
            )
        )
        for note in notes(run, measured):
            console.print(_text(note, "yellow"))
        for table in _tables(run, measured):
            if table.rows:
                console.print(table)
        if reasons := stop_reasons(measured):
            said = ", ".join(f"{reason} {share:.1%}" for reason, share in reasons.items())
            console.print(_text(f"Rollouts ended: {said}"))
        for title, rollout in _best_and_worst(run, measured):
            _show_rollout(title, rollout, console)


def _tables(run: Run, measures: Measures) -> Iterable[Table]:
    went = _table("How it went", "Steps", *PROGRESS.values())
    for row in progress(run, measures, ROWS):
        shares = [_share(row[name]) for name in ("answered", "failed")]
        numbers = [_number(row[name]) for name in PROGRESS if name not in ("answered", "failed")]
        steps = str(row["first"]) if row["first"] == row["last"] else f"{row['first']} – {row['last']}"
        went.add_row(steps, *numbers, *shares)
    yield went
    gains = _table("Credit by turn index", "Turn", "Scored", "Gain", "Gain above 0", "Advantage", "Clip scale")
    for row in by_turn(measures):
        numbers = [
            _number(row["gain"]),
            _share(row["positive"]),
            _number(row["advantage"]),
            _number(row["clip_scale"]),
        ]
        gains.add_row(str(row["turn"]), f"{row['count']:,}", *numbers)
    yield gains
    tools = _table("Tools", "Tool", "Calls", "Failed", "Median s", "95 % below", "Longest")
    for row in by_tool(measures):
        seconds = [_number(row[name]) for name in ("median", "p95", "max")]
        tools.add_row(_text(row["name"]), f"{row['calls']:,}", _share(row["failed"]), *seconds)
    yield tools


def _best_and_worst(run: Run, measures: Measures) -> Iterable[tuple[str, Rollout]]:
    """The latest of those with the highest and with the lowest reward."""
    ranked = measures.rollouts.dropna(subset="reward").sort_values(["reward", "step"], kind="stable")
    if not len(ranked):
        return
    best = ranked.iloc[-1]
    worst = ranked[ranked["reward"] == ranked["reward"].iloc[0]].iloc[-1]
    places = [tuple(int(row[name]) for name in ROLLOUT) for row in (best, worst)]
    rollouts = read_rollouts(run, 0, {place[:2] for place in places})
    found = {place: one for one in rollouts if (place := (one.batch, one.group, one.generation)) in places}
    for title, place in zip(("Best rollout", "Worst rollout"), places, strict=True):
        if place in found:  # a run that is still training may have thinned its records out
            yield title, found[place]


def _show_rollout(title: str, rollout: Rollout, console: Console) -> None:
    console.print()
    console.print(_text(f"{title}: {rollout.question}", "bold"))
    ended = f", {rollout.stop_reason}" if rollout.stop_reason else ""
    place = f"step {rollout.step}, batch {rollout.batch}, group {rollout.group}, rollout {rollout.generation}"
    console.print(
        _text(f"true answer {rollout.answer or _number(None)}, reward {_number(rollout.reward)}{ended} ({place})")
    )
    own = list(dict.fromkeys(name for turn in rollout.turns for name in turn["estimator_columns"] or {}))
    credit = _table("", "Turn", "Advantage", "Gain", "Normalised", "Belief", "Clip range", *own)
    for k, turn in enumerate(rollout.turns):
        credit.add_row(
            str(k),
            Text(_number(turn["advantage"], "+"), _style(turn["advantage"])),
            *(_number(turn[name], "+") for name in ("information_gain", "normalized_gain")),
            _pair(turn["belief_before"], "→", turn["belief_after"]),
            _pair(turn["clip_low"], "–", turn["clip_high"], digits=4),
            *(_number((turn["estimator_columns"] or {}).get(name), "+") for name in own),
        )
    console.print(credit)
    for k, turn in enumerate(rollout.turns):
        console.print(Text(f"Turn {k} {_number(turn['advantage'], '+')}", f"bold {_style(turn['advantage'])}"))
        console.print(_text(_cut(turn["text"] or "")))
        for call in turn["calls"] or []:
            failed = ", failed" if call["failed"] else ""
            console.print(
                _text(_cut(f"{call['name']} {call['arguments']} ({_number(call['seconds'])} s{failed})"), "cyan")
            )
        if turn["observation"]:
            console.print(_text(_cut(turn["observation"]), "dim"))


def _style(advantage: float | None) -> str:
    return "" if advantage is None else "blue" if advantage >= 0 else "dark_orange3"


def _pair(first: float | None, between: str, second: float | None, digits: int = 2) -> str:
    if first is None and second is None:
        return _number(None)
    return f"{_number(first, digits=digits)} {between} {_number(second, digits=digits)}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters)"


def _number(value: Any, sign: str = "", digits: int = 2) -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}".replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _text(text: str, style: str = "") -> Text:
    """Text that is no markup, and cannot steer the terminal."""
    return Text(plain(text), style)
