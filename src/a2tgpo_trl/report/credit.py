"""One rollout's credit as a picture."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..integrations.plain import plain
from .palette import LIGHT

TURN, OUTCOME, CLIP = LIGHT[0], LIGHT[-1], LIGHT[2]


def draw_credit(turns: Sequence[dict[str, Any]], file: Path) -> None:
    """
    Draw, turn by turn, what a rollout came to believe, its advantage and its clip range.

    Args:
        turns (`Sequence[dict]`): The turn records of one rollout, in their order.
        file (`Path`): PNG file.

    Raises:
        ImportError: If matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")  # before pyplot is imported, so that no display is asked for
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(
            3, 1, figsize=(8, 6.4), layout="constrained", sharex=True, height_ratios=(1.4, 1, 0.8)
        )
        _beliefs(axes[0], turns)
        _advantages(axes[1], turns)
        _clip_ranges(axes[2], turns)
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3, axis="y")
            axis.set_axisbelow(True)
        labels = [textwrap.fill(plain(turn["text"]).strip(), 26)[:90] for turn in turns]
        axes[2].set_xticks(range(len(turns)), [f"turn {k}\n{label}" for k, label in enumerate(labels)], fontsize=8)
        axes[2].set_xlim(-0.6, len(turns) - 0.4)
        prompt = textwrap.shorten(plain(turns[0]["prompt"]), 105, placeholder=" …")
        title = f"{prompt}\nTrue answer: {plain(turns[0]['answer'] or '–')}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.savefig(file, dpi=110)
        plt.close(figure)


def most_telling(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The rollout whose turns earned the most different advantages, the latest of equals.

    Args:
        turns (`Sequence[dict]`): Turn records, rollout by rollout.

    Returns:
        `list[dict]`: those of one rollout.
    """
    rollouts = [list(rows) for _, rows in groupby(turns, key=lambda t: (t["batch"], t["group"], t["generation"]))]

    def spread(rollout):
        advantages = [turn["advantage"] for turn in rollout if turn["advantage"] is not None]
        return max(advantages, default=0.0) - min(advantages, default=0.0)

    return max(reversed(rollouts), key=spread)


def _beliefs(axis, turns: Sequence[dict[str, Any]]) -> None:
    """s(k) before each turn and after its observation, and the gain between them."""
    for k, turn in enumerate(turns):
        before, after = turn["belief_before"], turn["belief_after"]
        if before is not None:
            axis.plot([k - 0.45, k - 0.15], [before] * 2, color=TURN, linewidth=2.5)
        if before is not None and after is not None:
            axis.plot([k + 0.15, k + 0.45], [after] * 2, color=TURN, linewidth=2.5)
            axis.annotate("", (k + 0.15, after), (k - 0.15, before), arrowprops={"arrowstyle": "->", "color": TURN})
            axis.annotate(
                f"gain {turn['information_gain']:+.2f}",
                (k, (before + after) / 2),
                textcoords="offset points",
                xytext=(6, -10),
                fontsize=8,
            )
    axis.margins(y=0.15)
    axis.set_ylabel("belief in the answer")


def _advantages(axis, turns: Sequence[dict[str, Any]]) -> None:
    """What the rewards gave, what the gains added, and their sum."""
    known = {k: turn for k, turn in enumerate(turns) if turn["advantage"] is not None}
    outcome = np.array([turn["outcome_advantage"] for turn in known.values()])
    whole = np.array([turn["advantage"] for turn in known.values()])
    k = np.array(list(known))
    axis.bar(k - 0.18, outcome, 0.3, color=OUTCOME, label="outcome")
    axis.bar(k + 0.18, whole - outcome, 0.3, color=TURN, label="turn credit")
    axis.hlines(whole, k - 0.4, k + 0.4, color="black", label="advantage")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_ylabel("advantage")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _clip_ranges(axis, turns: Sequence[dict[str, Any]]) -> None:
    """The range of each turn's importance ratio, against the one that a turn without a gain has."""
    for k, turn in enumerate(turns):
        if turn["clip_scale"] is None:
            continue
        low, high = turn["clip_low"] - 1, turn["clip_high"] - 1
        axis.bar(k, high - low, 0.5, bottom=low, color=CLIP, alpha=0.75)
        for end in (low / turn["clip_scale"], high / turn["clip_scale"]):
            axis.plot([k - 0.35, k + 0.35], [end] * 2, color="black", linewidth=0.9, linestyle="--")
        axis.annotate(f"× {turn['clip_scale']:.2f}", (k, 0), ha="center", va="center", fontsize=8)
    axis.use_sticky_edges = False
    axis.margins(y=0.15)
    axis.set_ylabel("clip range of\nthe ratio, − 1")
