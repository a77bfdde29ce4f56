"""What the demo shows: a table, a learning-curve figure and a page of rollouts, from plain dicts and lists."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported, so that no display is asked for
import matplotlib.pyplot as plt

TURN_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
CURVE_COLOR = "#4c78a8"
HELD_OUT_COLOR = "#d62728"
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
            a rollout batch; those that follow are more updates on it.

    Returns:
        `list[dict]`: `reward`, `searches`, `gains` (a list, by turn) and `clipped`, the share of tokens at a binding clip
        over the batch's updates.
    """
    curve = []
    for row in log_history:
        if "reward" in row:
            curve.append(
                {
                    "reward": row["reward"],
                    "searches": row["turns/tool_mean"],
                    "gains": gains_by_turn(row),
                    "clip_shares": [],
                }
            )
        if curve and "clip_ratio/region_mean" in row:
            curve[-1]["clip_shares"].append(row["clip_ratio/region_mean"])
    for point in curve:
        shares = point.pop("clip_shares")
        point["clipped"] = sum(shares) / len(shares) if shares else math.nan
    return curve


def plot_learning_curve(curve: Sequence[dict], before: dict, after: dict, path: Path) -> None:
    """
    Draw how training went.

    Args:
        curve (`Sequence[dict]`): What [`learning_curve`] returns.
        before, after (`dict`): Evaluations on held-out questions, `{"greedy": …, "sampled": …}` with `exact_match` and
            `searches` each.
        path (`Path`): PNG file to write.
    """
    batches = range(1, len(curve) + 1)
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.6), sharex=True, layout="constrained")
    figure.suptitle("A²TGPO on two-hop questions; held-out questions are about countries never trained on")
    ends = (0.5, len(curve) + 0.5)  # held-out points stand before the first and after the last batch

    rewards, searches, gains, clipped = axes.flat
    rewards.plot(batches, [p["reward"] for p in curve], "o-", color=CURVE_COLOR, label="training, sampled")
    _held_out(rewards, ends, before, after, "exact_match")
    rewards.set(title="Exact match", ylim=(-0.03, 1.03))
    searches.plot(batches, [p["searches"] for p in curve], "o-", color=CURVE_COLOR, label="training, sampled")
    _held_out(searches, ends, before, after, "searches")
    searches.set(title="Searches per question")
    _from_zero(searches)
    _plot_gains(gains, batches, curve)
    clipped.plot(batches, [100 * p["clipped"] for p in curve], "o-", color=CURVE_COLOR)
    clipped.set(title="Tokens at a binding clip (%)", xlabel="rollout batch")
    _from_zero(clipped)

    for axis in axes.flat:
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _from_zero(axis) -> None:
    axis.set_ylim(bottom=0, top=1.08 * max(axis.get_ylim()[1], 1e-3))


def _held_out(axis, ends: tuple[float, float], before: dict, after: dict, name: str) -> None:
    values = [before["greedy"][name], after["greedy"][name]]
    axis.plot(ends, values, "D--", color=HELD_OUT_COLOR, linewidth=1, label="held out, greedy")
    axis.legend(frameon=False)


def _plot_gains(axis, batches: range, curve: Sequence[dict]) -> None:
    """One line for each turn that was measured in at least two batches."""
    for k, color in enumerate(TURN_COLORS):
        values = [p["gains"][k] if k < len(p["gains"]) else math.nan for p in curve]
        if sum(not math.isnan(value) for value in values) > 1:
            axis.plot(batches, values, "o-", color=color, label=f"search {k + 1}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title="Mean information gain (nats per answer token)", xlabel="rollout batch")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)


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
        ("exact match, greedy", before["greedy"]["exact_match"], after["greedy"]["exact_match"]),
        ("exact match, sampled", before["sampled"]["exact_match"], after["sampled"]["exact_match"]),
        ("searches per question, greedy", before["greedy"]["searches"], after["greedy"]["searches"]),
        ("searches per question, sampled", before["sampled"]["searches"], after["sampled"]["searches"]),
    ]
    first, second = before["sampled"]["gains"], after["sampled"]["gains"]
    for k in range(max(len(first), len(second))):
        pair = [gains[k] if k < len(gains) else math.nan for gains in (first, second)]
        rows.append((f"information gain of search {k + 1}, sampled", *pair))
    lines = [f"{'held-out countries':<38}{'warm start':>12}{'trained':>10}{'change':>10}"]
    lines.append("-" * len(lines[0]))
    lines += [f"{name:<38}{_number(a):>12}{_number(b):>10}{_number(b - a, '+'):>10}" for name, a, b in rows]
    return "\n".join(lines)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{sign}.2f}"


def format_rollout(rollout: dict, epsilon: float, epsilon_high: float) -> str:
    """
    One rollout as Markdown: its text turn by turn, and a table of the credit that each turn got.

    Args:
        rollout (`dict`): `prompt`, `answer`, `reward`, and `turns`: dicts with `text`, `result` (what the tool returned,
            `None` if no call followed), `information_gain`, `normalized_gain`, `advantage` and `clip_scale`, `None` where
            a turn has no value.
        epsilon, epsilon_high (`float`): The clip range before it is scaled.

    Returns:
        `str`: Markdown.
    """
    prompt = rollout["prompt"].strip()
    lines = [
        f"### {prompt}",
        "",
        f"True answer: **{rollout['answer']}** · reward {rollout['reward']:g}",
        "",
        "```text",
    ]
    for turn in rollout["turns"]:
        lines.append(turn["text"].strip())
        if turn["result"] is not None:
            lines.append(f"<result>{turn['result']}</result>")
    lines += ["```", "", "| turn | gain | normalised | advantage | clip range |", "|---|---|---|---|---|"]
    for number, turn in enumerate(rollout["turns"], start=1):
        credit = [_number(turn[name], "+") for name in ("information_gain", "normalized_gain", "advantage")]
        lines.append(f"| {number} | {' | '.join(credit)} | {_clip_range(turn['clip_scale'], epsilon, epsilon_high)} |")
    return "\n".join(lines)


def _clip_range(scale: float | None, epsilon: float, epsilon_high: float) -> str:
    scale = 1.0 if scale is None else scale
    return f"[{1 - scale * epsilon:.4f}, {1 + scale * epsilon_high:.4f}]"


def write_rollouts(
    sections: Sequence[tuple[str, Sequence[dict]]], epsilon: float, epsilon_high: float, path: Path
) -> None:
    """
    Write a page of rollouts.

    Args:
        sections (`Sequence`): Heading and rollouts (see [`format_rollout`]) of each section.
        epsilon, epsilon_high (`float`): The clip range before it is scaled.
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
        parts += [format_rollout(rollout, epsilon, epsilon_high) for rollout in rollouts]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
