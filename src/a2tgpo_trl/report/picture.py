"""A rollout's credit as a picture."""

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..integrations.plain import plain
from .credit import Turn, shown_rollout
from .formats import MISSING
from .palette import LIGHT
from .plots import figure, tidy
from .rollouts import question

END = re.compile(r"(<\|\w+\|>|</s>|<eos>|<end_of_turn>)$")
TURN, OUTCOME, CLIP, VALUE = LIGHT[0], LIGHT[-1], LIGHT[2], LIGHT[3]


@dataclass(frozen=True)
class Panel:
    """
    One of the drawings, which stand above each other.

    Attributes:
        label (`str`): Of its y axis.
        height (`float`): Against that of the others.
        needs (`str`): What it draws; it is left out where no turn has this number.
        draw (`Callable`): Draws a turn: axis, index and turn.
    """

    label: str
    height: float
    needs: str
    draw: Callable[[Any, int, Turn], None]


def draw_credit(turns: Sequence[dict[str, Any]], file: Path) -> None:
    """
    Draw, turn by turn, what a rollout came to believe, its value, its advantage and its clip range, as far as they are known.

    Args:
        turns (`Sequence[dict]`): The turn records of one rollout, in their order.
        file (`Path`): PNG file.

    Raises:
        ImportError: If matplotlib is missing.
    """
    rollout = shown_rollout(turns, question(turns[0]["prompt"] or ""))
    known = {name for turn in rollout.turns for name, number in turn.drawn.items() if number is not None} | {
        "advantage"
    }
    panels = [panel for panel in PANELS if panel.needs in known]
    heights = [panel.height for panel in panels]
    size = (8, 1.6 + 1.5 * sum(heights))
    with figure(
        file, dpi=110, nrows=len(panels), figsize=size, sharex=True, squeeze=False, height_ratios=heights
    ) as grid:
        axes = grid[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel, rollout.turns)
        width = max(8, 78 // len(rollout.turns))  # characters
        labels = [_in_lines(turn.text, width) for turn in rollout.turns]
        axes[-1].set_xticks(range(len(labels)), [f"turn {k}\n{label}" for k, label in enumerate(labels)], fontsize=8)
        axes[-1].set_xlim(-0.6, len(labels) - 0.4)
        asked = textwrap.shorten(plain(rollout.question), 105, placeholder=" …")
        title = f"{asked}\nTrue answer: {plain(rollout.shared.get('true answer', MISSING))}"
        axes[0].figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def _in_lines(text: str, width: int) -> str:
    """The first lines of a turn, without the special token that ends it."""
    return "\n".join(textwrap.wrap(END.sub("", plain(text).strip()), width)[:4])


def _draw(axis, panel: Panel, turns: Sequence[Turn]) -> None:
    tidy(axis, "y")
    for k, turn in enumerate(turns):
        panel.draw(axis, k, turn)
    axis.set_ylabel(panel.label)
    axis.margins(y=0.15)
    _legend(axis)


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


def _values(axis, k: int, turn: Turn) -> None:
    """What the estimator expects of the turn, and what it then took as true."""
    value, target = turn.drawn["value"], turn.drawn["return"]
    if value is not None:
        axis.hlines(value, k - 0.4, k + 0.4, color=VALUE, linewidth=2.5, label="value")
        place = {"textcoords": "offset points", "xytext": (0, 3), "fontsize": 8, "ha": "right"}
        axis.annotate(turn.credit["value"], (k + 0.4, value), **place)
    if target is not None:
        axis.plot(k, target, color="black", marker="o", markersize=4, linestyle="", label="return")


def _advantages(axis, k: int, turn: Turn) -> None:
    """What the rewards gave, what the turn's own signal added, and their sum."""
    axis.axhline(0, color="black", linewidth=0.6)
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
    axis.use_sticky_edges = False
    axis.bar(k, high - low, 0.5, bottom=low - 1, color=CLIP, alpha=0.75)
    for end in ((low - 1) / scale, (high - 1) / scale):
        axis.plot([k - 0.35, k + 0.35], [end] * 2, color="black", linewidth=0.9, linestyle="--")
    axis.annotate(turn.credit["clip scale"], (k, 0), ha="center", va="center", fontsize=8)


def _legend(axis) -> None:
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one of each name
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1)}
    if named:
        axis.legend(named.values(), named.keys(), frameon=False, fontsize=8, ncols=3, **place)


PANELS = (
    Panel("belief in the answer", 1.4, "belief_before", _beliefs),
    Panel("value", 1, "value", _values),
    Panel("advantage", 1, "advantage", _advantages),
    Panel("clip range\nof ratio − 1", 0.8, "clip_low", _clip_ranges),
)
