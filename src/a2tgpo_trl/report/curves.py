"""The charts of lines over steps: where each finds its values, in the trainer's log and in the turns."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from .measures import ROLLOUT, Measures

STEP = "optimizer step"
SECTIONS = ("Learning", "Credit", "Rollouts", "Tools")
ALL_TURNS, ALL_TOOLS = "all turns", "all tools"
_UNITS = 'Nats per answer token; probability with belief_measure="prob".'
Lines = dict[str, tuple[Sequence[float], Sequence[float]]]
"""Steps and values, by what they show."""


@dataclass(frozen=True)
class Curve:
    """
    A chart of lines over steps.

    Attributes:
        key, section, title, what, unit (`str`): As in [`Chart`]; the unit is that of its y axis.
        logged (`dict[str, str]`): Keys of the log, as regular expressions, with the names of their lines.
        recorded (`Callable`): Lines from the turns, for runs whose log has none.
        prefers_turns (`bool`): Whether the turns come first, and the log stands in.
        has_band (`bool`): Whether lines from the turns are medians in a band, not means.
    """

    key: str
    section: str
    title: str
    what: str
    unit: str
    logged: dict[str, str]
    recorded: Callable[[Measures], Lines] = lambda measures: {}
    prefers_turns: bool = False
    has_band: bool = False


def _by(frame: pd.DataFrame, column: str, value: str) -> Lines:
    """A line for each value of a column."""
    return {str(key): (part["step"], part[value]) for key, part in frame.dropna(subset=value).groupby(column)}


def _rewards(measures: Measures) -> Lines:
    return {"training": (measures.rollouts["step"], measures.rollouts["reward"])}


def _turns(measures: Measures) -> Lines:
    return {ALL_TURNS: (measures.rollouts["step"], measures.rollouts["num_turns"])}


def _gains(measures: Measures) -> Lines:
    scored = measures.scored.astype({"turn": int})
    by_turn = _by(scored, "turn", "information_gain")
    whole = {ALL_TURNS: (scored["step"], scored["information_gain"])} if len(scored) else {}
    return whole | {f"turn {turn}": line for turn, line in by_turn.items()}


def _failures(measures: Measures) -> Lines:
    by_tool, calls = _by(measures.calls, "name", "failed"), measures.calls.dropna(subset="failed")
    return by_tool | {ALL_TOOLS: (calls["step"], calls["failed"])} if len(by_tool) > 1 else by_tool


def own_curves(measures: Sequence[Measures]) -> list[Curve]:
    """A chart for each of the columns that the estimators of some runs name."""

    def curve(name: str) -> Curve:
        what = "A column of the advantage estimator: the mean over the turns that have a value."
        key = re.sub(r"\W+", "-", f"own-{name}")
        logged = {f"{re.escape(name)}/mean": ALL_TURNS}
        return Curve(key, "Credit", name, what, name, logged, lambda measured: _own(measured, name))

    return [curve(name) for name in dict.fromkeys(name for measured in measures for name in measured.own["name"])]


def _own(measures: Measures, name: str) -> Lines:
    values = measures.own[measures.own["name"] == name].dropna(subset="value")
    return {ALL_TURNS: (values["step"], values["value"])} if len(values) else {}


def _beliefs(measures: Measures) -> Lines:
    first = measures.rollouts.set_index(ROLLOUT)
    last = measures.scored.drop_duplicates(ROLLOUT, keep="last").set_index(ROLLOUT)["belief_after"]
    if not last.notna().any():
        return {}
    return {
        "before the first observation": (first["step"], first["belief_before"]),
        "after the last observation": (first["step"], last.reindex(first.index).fillna(first["belief_before"])),
    }


CURVES = (
    Curve(
        "reward",
        "Learning",
        "Reward",
        "What training raises: the weighted sum of the rewards.",
        "reward of a rollout",
        {"reward": "training", "eval_reward": "evaluation"},
        _rewards,
    ),
    Curve(
        "rewards",
        "Learning",
        "Reward by function",
        "The same, function by function.",
        "reward of a rollout",
        {"rewards/(.+)/mean": r"\1", "eval_rewards/(.+)/mean": r"\1, evaluation"},
        lambda measures: _by(measures.rewards, "name", "value"),
    ),
    Curve(
        "turns",
        "Learning",
        "Turns of a rollout",
        "How often the model acts. An observation follows a tool turn.",
        "turns",
        {"turns/mean": ALL_TURNS, "turns/tool_mean": "tool turns"},
        _turns,
    ),
    Curve(
        "length",
        "Learning",
        "Length of completions",
        "Tool results do not count. Length that grows without reward is rambling.",
        "tokens",
        {"completions/mean_length": ""},
    ),
    Curve(
        "entropy",
        "Learning",
        "Entropy",
        "Near 0 the model samples the same words each time, and groups have nothing to compare.",
        "nats per token",
        {"entropy": ""},
    ),
    Curve(
        "loss",
        "Learning",
        "Loss",
        "Near 0 by construction where updates are on-policy; it says little about learning.",
        "loss",
        {"loss": ""},
    ),
    Curve(
        "gradient",
        "Learning",
        "Gradient norm",
        "Before gradient clipping. Spikes go with steps that are too large.",
        "norm",
        {"grad_norm": ""},
    ),
    Curve(
        "equal-rewards",
        "Learning",
        "Groups of equal rewards",
        "Their outcome advantage is 0: turn credit is all that they learn from.",
        "share of groups",
        {"frac_reward_zero_std": ""},
    ),
    Curve(
        "gain",
        "Credit",
        "Information gain by turn index",
        f"How much the turns at an index raised the belief in the true answer. {_UNITS}",
        "gain",
        {"information_gain/mean": ALL_TURNS, r"information_gain/turn_(\d+)": r"turn \1"},
        _gains,
    ),
    Curve(
        "belief",
        "Credit",
        "Belief in the true answer",
        f"The distance between the two lines is what the tools contribute. {_UNITS}",
        "belief",
        {"belief/first": "on the prompt alone", "belief/last": "after the last observation"},
        _beliefs,
    ),
    Curve(
        "clipped",
        "Credit",
        "Tokens at a binding clip",
        "They learn nothing, each against the range of its turn. Near 1, steps are too large for the range.",
        "share of tokens",
        {"clip_ratio/region_mean": ""},
    ),
    Curve(
        "advantages-by-step",
        "Credit",
        "Advantages by step",
        "Median, and the band that holds all but the outer tenths.",
        "advantage of a turn",
        {},
        lambda measures: {"": (measures.turns["step"], measures.turns["advantage"])},
        has_band=True,
    ),
    Curve(
        "turn-credit-by-step",
        "Credit",
        "Turn credit by step",
        "Mean magnitude of what turns earn beside the outcome's advantage.",
        "|advantage − outcome advantage|",
        {"advantages/turn_part_abs_mean": ""},
        lambda measures: {"": (measures.scored["step"], measures.turn_credit.abs())},
    ),
    Curve(
        "clip-scale-by-step",
        "Credit",
        "Clip scale by step",
        "Of turns that have a gain: median, and the band that holds all but the outer tenths.",
        "factor of the clip range",
        {},
        lambda measures: {"": (measures.scored["step"], measures.scored["clip_scale"])},
        has_band=True,
    ),
    Curve(
        "latency",
        "Tools",
        "Latency by tool",
        "How long calls ran: median, and the band that holds all but the outer tenths.",
        "seconds",
        {"tools/(.+)/latency_median": r"\1"},
        lambda measures: _by(measures.calls, "name", "seconds"),
        prefers_turns=True,
        has_band=True,
    ),
    Curve(
        "failures",
        "Tools",
        "Failed calls by tool",
        "Errors of a tool, arguments that it does not take, and calls that ran out of time.",
        "share of calls",
        {"tools/failure_frequency": ALL_TOOLS},
        _failures,
        prefers_turns=True,
    ),
)
