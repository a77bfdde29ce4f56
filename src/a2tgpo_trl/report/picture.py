"""A rollout's credit as a picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..integrations.plain import plain
from .credit import Turn, shown_rollout
from .formats import MISSING
from .palette import LIGHT
from .plots import figure, tidy
from .rollouts import question

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
    rollout = shown_rollout(turns, question(turns[0]["prompt"] or ""))
    layout = {"nrows": 3, "figsize": (8, 6.4), "sharex": True, "height_ratios": (1.4, 1, 0.8)}
    with figure(file, dpi=110, **layout) as axes:
        for axis, draw in zip(axes, (_beliefs, _advantages, _clip_ranges), strict=True):
            tidy(axis, "y")
            for k, turn in enumerate(rollout.turns):
                draw(axis, k, turn)
        axes[0].set_ylabel("belief in the answer")
        axes[1].set_ylabel("advantage")
        axes[1].axhline(0, color="black", linewidth=0.6)
        axes[2].set_ylabel("clip range of\nthe ratio, − 1")
        axes[2].use_sticky_edges = False
        for axis in axes:
            axis.margins(y=0.15)
        _legend(axes[1])
        labels = [textwrap.fill(plain(turn.text).strip(), 26)[:90] for turn in rollout.turns]
        axes[2].set_xticks(range(len(labels)), [f"turn {k}\n{label}" for k, label in enumerate(labels)], fontsize=8)
        axes[2].set_xlim(-0.6, len(labels) - 0.4)
        asked = textwrap.shorten(plain(rollout.question), 105, placeholder=" …")
        title = f"{asked}\nTrue answer: {plain(rollout.shared.get('true answer', MISSING))}"
        axes[0].figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def _beliefs(axis, k: int, turn: Turn) -> None:
    """s(k) before the turn and after its observation, and the gain between them."""
    before, after = turn.drawn["belief_before"], turn.drawn["belief_after"]
    if before is not None:
        axis.plot([k - 0.45, k - 0.15], [before] * 2, color=TURN, linewidth=2.5)
    if before is not None and after is not None:
        axis.plot([k + 0.15, k + 0.45], [after] * 2, color=TURN, linewidth=2.5)
        axis.annotate("", (k + 0.15, after), (k - 0.15, before), arrowprops={"arrowstyle": "->", "color": TURN})
        place = {"textcoords": "offset points", "xytext": (0, 5), "fontsize": 8, "ha": "center"}
        axis.annotate(f"gain {turn.credit['gain']}", (k, max(before, after)), **place)


def _advantages(axis, k: int, turn: Turn) -> None:
    """What the rewards gave, what the turn's own signal added, and their sum."""
    whole, outcome = turn.drawn["advantage"], turn.drawn["outcome_advantage"]
    if whole is None:
        return
    if outcome is not None:
        axis.bar(k - 0.18, outcome, 0.3, color=OUTCOME, label="outcome")
        axis.bar(k + 0.18, whole - outcome, 0.3, color=TURN, label="turn credit")
    axis.hlines(whole, k - 0.4, k + 0.4, color="black", label="advantage")
    place = {"textcoords": "offset points", "xytext": (0, 3), "fontsize": 8, "ha": "right"}
    axis.annotate(turn.credit["advantage"], (k + 0.4, whole), **place)


def _clip_ranges(axis, k: int, turn: Turn) -> None:
    """The range of the turn's importance ratio, against the one that a turn without a gain has."""
    low, high, scale = (turn.drawn[name] for name in ("clip_low", "clip_high", "clip_scale"))
    if None in (low, high) or not scale:
        return
    axis.bar(k, high - low, 0.5, bottom=low - 1, color=CLIP, alpha=0.75)
    for end in ((low - 1) / scale, (high - 1) / scale):
        axis.plot([k - 0.35, k + 0.35], [end] * 2, color="black", linewidth=0.9, linestyle="--")
    axis.annotate(turn.credit["clip scale"], (k, 0), ha="center", va="center", fontsize=8)


def _legend(axis) -> None:
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one of each name
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1)}
    axis.legend(named.values(), named.keys(), frameon=False, fontsize=8, ncols=3, **place)
