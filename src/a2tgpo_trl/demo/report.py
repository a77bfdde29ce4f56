"""What the demo shows: a table, learning curves and a page of rollouts, written and drawn as the report does."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..report import Chart, Series, as_markdown, shown_rollout
from ..report.formats import fixed, signed
from ..report.plots import write_sheet

BATCH = "rollout batch"
GAIN_PREFIX = "information_gain/turn_"


def gains_by_turn(logs: dict, prefix: str = "") -> list[float]:
    """The mean information gain of each turn in a row of logs, NaN where none was measured."""
    start = prefix + GAIN_PREFIX
    gains = {int(name.removeprefix(start)): value for name, value in logs.items() if name.startswith(start)}
    values = [gains.get(k) for k in range(max(gains, default=-1) + 1)]
    return [math.nan if value is None else value for value in values]


def learning_curve(log_history: Sequence[dict]) -> list[dict]:
    """
    One dict for each rollout batch, from a trainer's log of optimizer steps.

    Args:
        log_history (`Sequence[dict]`): `trainer.state.log_history`, one row a step. A row with a `reward` is the first of
            a rollout batch; those that follow are more updates on it, and an evaluation after them.

    Returns:
        `list[dict]`: `reward`, `searches`, `gains` (a list, by turn) and `clipped`, the share of tokens at a binding clip
        over the batch's updates; with an evaluation also `held_out`, its `exact_match` and `searches`.
    """
    curve, shares = [], []
    for row in log_history:
        if "reward" in row:
            curve.append({"reward": row["reward"], "searches": row["turns/tool_mean"], "gains": gains_by_turn(row)})
            shares.append([])
        if "eval_reward" in row:
            curve[-1]["held_out"] = {"exact_match": row["eval_reward"], "searches": row["eval_turns/tool_mean"]}
        if curve and "clip_ratio/region_mean" in row:
            shares[-1].append(row["clip_ratio/region_mean"])
    return [
        point | {"clipped": sum(of_batch) / len(of_batch) if of_batch else math.nan}
        for point, of_batch in zip(curve, shares, strict=True)
    ]


def plot_learning_curve(curve: Sequence[dict], before: dict, after: dict, path: Path) -> None:
    """
    Draw how training went.

    Args:
        curve (`Sequence[dict]`): What [`learning_curve`] returns.
        before, after (`dict`): Evaluations on held-out questions, `{"greedy": …, "sampled": …}` with `exact_match` and
            `searches` each.
        path (`Path`): PNG file to write.
    """
    held_out = [{"held_out": before["greedy"]}, *curve[:-1], {"held_out": after["greedy"]}]
    points = [
        (k + 0.5, point["held_out"]) for k, point in enumerate(held_out) if "held_out" in point
    ]  # between batches

    def chart(title: str, unit: str, lines: dict[str, list[float]], measured: str = "") -> Chart:
        series = [_series(name, range(1, len(curve) + 1), values) for name, values in lines.items()]
        if measured:
            places, values = zip(*((place, evaluation[measured]) for place, evaluation in points), strict=True)
            series.append(Series(0, "held out, greedy", [*places], [*values], is_evaluation=True))
        return Chart("", "", title, "", BATCH, unit, "line", [one for one in series if one.x])

    turns = max((len(point["gains"]) for point in curve), default=0)
    gains = {f"search {k + 1}": [_at(point["gains"], k) for point in curve] for k in range(turns)}
    training = {name: {"training, sampled": [point[name] for point in curve]} for name in ("reward", "searches")}
    charts = [
        chart("Exact match", "share of questions", training["reward"], "exact_match"),
        chart("Searches", "searches of a question", training["searches"], "searches"),
        chart("Mean information gain", "nats per answer token", gains),
        chart("Tokens at a binding clip", "share of tokens", {"training": [point["clipped"] for point in curve]}),
    ]
    title = "A²TGPO on two-hop questions; held-out questions are about countries never trained on"
    write_sheet([chart for chart in charts if chart.series], [""], title, path)


def _series(name: str, x: Sequence[float], y: Sequence[float]) -> Series:
    known = [(place, value) for place, value in zip(x, y, strict=True) if not math.isnan(value)]
    return Series(0, name, [place for place, _ in known], [value for _, value in known])


def _at(values: Sequence[float], k: int) -> float:
    return values[k] if k < len(values) else math.nan


def format_table(before: dict, after: dict) -> str:
    """
    The before-and-after table.

    Args:
        before, after (`dict`): `{"greedy": …, "sampled": …}`, each with `exact_match`, `searches` and `gains` (a list, by
            turn).

    Returns:
        `str`: lines of equal width.
    """
    rows = [
        (f"{what}, {mode}", before[mode][name], after[mode][name])
        for what, name in (("exact match", "exact_match"), ("searches per question", "searches"))
        for mode in ("greedy", "sampled")
    ]
    first, second = before["sampled"]["gains"], after["sampled"]["gains"]
    for k in range(max(len(first), len(second))):
        rows.append((f"information gain of search {k + 1}, sampled", _at(first, k), _at(second, k)))
    lines = [f"{'held-out countries':<38}{'warm start':>12}{'trained':>10}{'change':>10}"]
    lines.append("-" * len(lines[0]))
    lines += [f"{name:<38}{fixed(a):>12}{fixed(b):>10}{signed(b - a):>10}" for name, a, b in rows]
    return "\n".join(lines)


def write_rollouts(sections: Sequence[tuple[str, Sequence[list[dict]]]], path: Path) -> None:
    """
    Write a page of rollouts.

    Args:
        sections (`Sequence`): Heading and rollouts, each as its turn records, of each section.
        path (`Path`): Markdown file to write.
    """
    parts = [
        "# Rollouts, turn by turn",
        "Gain: by how much the search raised the mean log-probability of the true answer, in nats per token. Normalised: "
        "against the same turn of the other rollouts of the question. Advantage: what multiplies the turn's tokens in the "
        "loss. Clip range: where the turn's importance ratio may move freely. An answer turn has no gain.",
    ]
    for heading, rollouts in sections:
        parts.append(f"## {heading}")
        parts += [as_markdown(shown_rollout(turns, turns[0]["prompt"].strip())) for turns in rollouts]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
