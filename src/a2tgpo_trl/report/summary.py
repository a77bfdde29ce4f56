"""Runs in a few numbers: over steps, by turn index, by tool, by stop reason."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .lines import step_bins
from .measures import Measures
from .runs import Run

PROGRESS = {
    "reward": "Reward",
    "turns": "Turns",
    "gain": "Gain",
    "turn_credit": "Turn credit",
    "answered": "Answered",
    "failed": "Calls failed",
}
"""Columns of [`progress`] after the steps, with their titles: means, and shares of rollouts and of tool calls."""
_LOGGED = {
    "reward": "reward",
    "turns/mean": "turns",
    "information_gain/mean": "gain",
    "advantages/turn_part_abs_mean": "turn_credit",
    "rollout/stop/answered": "answered",
    "tools/failure_frequency": "failed",
}


def progress(run: Run, measures: Measures, rows: int) -> list[dict[str, Any]]:
    """
    How a run went, in a few rows.

    Args:
        run ([`Run`]), measures ([`Measures`]): The run.
        rows (`int`): Most rows.

    Returns:
        `list[dict]`: `first` and `last` step, and `PROGRESS`: `gain` is the mean information gain of scored turns,
        `turn_credit` the mean magnitude of what gains add to an advantage; `None` where nothing was measured.
    """
    measured = _measured(measures) if len(measures.turns) else _logged(run)
    if not len(measured):
        return []
    measured["bin"] = step_bins(measured["step"], rows).to_numpy()
    table = measured.pivot_table("value", "bin", "name").reindex(columns=list(PROGRESS))
    steps = measured.groupby("bin")["step"]
    table.insert(0, "first", steps.min().astype(int))
    table.insert(1, "last", steps.max().astype(int))
    return _rows(table)


def _measured(measures: Measures) -> pd.DataFrame:
    rollouts, scored, calls = measures.rollouts, measures.scored, measures.calls
    ended = rollouts.dropna(subset="stop_reason")
    return _long(
        {
            "reward": (rollouts["step"], rollouts["reward"]),
            "turns": (rollouts["step"], rollouts["num_turns"]),
            "gain": (scored["step"], scored["information_gain"]),
            "turn_credit": (scored["step"], (scored["advantage"] - scored["outcome_advantage"]).abs()),
            "answered": (ended["step"], ended["stop_reason"] == "answered"),
            "failed": (calls["step"], calls["failed"]),
        }
    )


def _logged(run: Run) -> pd.DataFrame:
    return _long({_LOGGED[name]: values for name, values in run.logged().items() if name in _LOGGED})


def _long(columns: dict[str, tuple[Sequence, Sequence]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"step": np.asarray(steps, float), "value": np.asarray(values, float), "name": name})
        for name, (steps, values) in columns.items()
        if len(steps)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["step", "value", "name"])


def by_turn(measures: Measures) -> list[dict[str, Any]]:
    """
    Credit by turn index: `turn`, `count` of scored turns, mean `gain`, share of `positive` gains, mean `advantage` and mean
    `clip_scale`.
    """
    scored = measures.scored.assign(positive=measures.scored["information_gain"] > 0).astype({"turn": int})
    table = scored.groupby("turn").agg(
        count=("step", "size"),
        gain=("information_gain", "mean"),
        positive=("positive", "mean"),
        advantage=("advantage", "mean"),
        clip_scale=("clip_scale", "mean"),
    )
    return _rows(table.reset_index())


def by_tool(measures: Measures) -> list[dict[str, Any]]:
    """Calls by tool: `name`, `calls`, share `failed`, and `median`, `p95` and `max` of their seconds."""
    seconds = measures.calls.groupby("name")["seconds"]
    table = pd.DataFrame(
        {
            "calls": measures.calls.groupby("name").size(),
            "failed": measures.calls.groupby("name")["failed"].mean(),
            "median": seconds.median(),
            "p95": seconds.quantile(0.95),
            "max": seconds.max(),
        }
    )
    return _rows(table.sort_values("calls", ascending=False).reset_index(names="name"))


def stop_reasons(measures: Measures) -> dict[str, float]:
    """Share of the rollouts by stop reason, the most frequent first; empty where none is known."""
    shares = measures.rollouts["stop_reason"].value_counts(normalize=True)
    return {str(reason): float(share) for reason, share in shares.items()}


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of plain numbers; `None` for NaN."""
    return [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in table.astype(object).to_dict("records")
    ]


def notes(run: Run, measures: Measures) -> list[str]:
    """What is to be said of a run: what is missing in its folder, whether it has no gains, and where its log ends."""
    said, turns = list(run.notes), measures.turns
    if len(turns) and not len(measures.scored):
        said.append(
            "No turn has an information gain: no tool was called, no row had a true answer, or the estimator measures none."
        )
        parts = (turns["advantage"] - turns["outcome_advantage"]).dropna().abs()
        if len(parts) and parts.max() < 1e-6:
            said.append("Every turn has the outcome's advantage.")
    if len(turns) and run.log and turns["step"].max() >= (end := run.log[-1]["step"]):
        said.append(f"The log ends at step {end}, and rollouts go on: entropy, loss and clip shares end there.")
    return said
