"""The numbers of a run's turns, without their texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .lines import MOST_LINES
from .runs import Run

ROLLOUT = ["batch", "group", "generation"]
"""Columns that name a rollout of a run."""
NUMBERS = [
    *ROLLOUT,
    "step",
    "turn",
    "num_turns",
    "belief_before",
    "belief_after",
    "information_gain",
    "turn_group_size",
    "advantage",
    "outcome_advantage",
    "clip_scale",
    "reward",
]
CALLS = ["step", "name", "failed", "seconds"]
MOST_TOOLS = MOST_LINES - 2
"""What a model calls has any name; those called least are put together. The last line is that of all tools."""
OTHER_TOOLS = "other tools"
_NAMED = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float32())]))


@dataclass(frozen=True)
class Measures:
    """
    What was measured of turns; NaN where there is nothing.

    Attributes:
        turns (`DataFrame`): A row for each turn: `NUMBERS`, `stop_reason`, and `is_last`, whether its rollout ended there.
        calls (`DataFrame`): A row for each tool call: `step`, `name`, `failed` (0 or 1) and `seconds`.
        rewards (`DataFrame`): A row for each reward of a rollout: `step`, `name` and `value`.
        own (`DataFrame`): A row for each number in an estimator's own columns: `step`, `name` and `value`.
    """

    turns: pd.DataFrame
    calls: pd.DataFrame
    rewards: pd.DataFrame
    own: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> "Measures":
        """Read them."""
        parts = {"turns": [], "calls": [], "rewards": [], "own": []}
        for table in run.batches([*NUMBERS, "stop_reason", "calls", "rewards", "estimator_columns"]):
            parts["turns"].append(table.drop(["calls", "rewards", "estimator_columns"]).to_pandas())
            parts["calls"].append(_items(table, "calls")[CALLS])  # texts are many times as large
            parts["rewards"].append(_items(table.filter(pc.equal(table["turn"], 0)), "rewards", _NAMED))
            parts["own"].append(_items(table, "estimator_columns", _NAMED))
        turns = _finite(_joined(parts["turns"], [*NUMBERS, "stop_reason"]), NUMBERS)
        turns["is_last"] = turns["turn"] == turns["num_turns"] - 1
        calls = _joined(parts["calls"], CALLS)
        most_used = calls["name"].value_counts().index[:MOST_TOOLS]
        calls["name"] = calls["name"].where(calls["name"].isin(most_used), OTHER_TOOLS)
        named = [_finite(_joined(parts[name], ["step", "name", "value"]), ["value"]) for name in ("rewards", "own")]
        return cls(turns, calls.astype({"failed": float, "seconds": float}), *named)

    @classmethod
    def joined(cls, measures: Sequence["Measures"]) -> "Measures":
        """Those of several runs together; batches are numbered on from run to run."""
        if len(measures) == 1:
            return measures[0]
        ends = np.cumsum([0, *(one.turns["batch"].max() + 1 if len(one.turns) else 0 for one in measures)])
        parts = {field.name: [getattr(one, field.name) for one in measures] for field in fields(cls)}
        parts["turns"] = [
            turns.assign(batch=turns["batch"] + end) for turns, end in zip(parts["turns"], ends, strict=False)
        ]
        return cls(**{name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()})

    @property
    def rollouts(self) -> pd.DataFrame:
        """The first turn of each rollout, which tells what holds for all of it."""
        return self.turns[self.turns["turn"] == 0]

    @property
    def scored(self) -> pd.DataFrame:
        """The turns that have an information gain; with an estimator that measures none, no turn has."""
        return self.turns[self.turns["information_gain"].notna()]

    @property
    def turn_credit(self) -> pd.Series:
        """What these have in addition to the outcome's advantage."""
        return self.scored["advantage"] - self.scored["outcome_advantage"]


def _joined(frames: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _finite(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return frame.assign(**frame[columns].astype(float).replace([math.inf, -math.inf], math.nan))


def _items(table: pa.Table, column: str, kind: pa.DataType | None = None) -> pd.DataFrame:
    """A row for each item of a column of lists, with the step of its turn."""
    lists = table[column].combine_chunks()
    lists = lists if kind is None else lists.cast(kind)
    parents = table.select(["step"]).take(pc.list_parent_indices(lists)).to_pandas()
    return parents.join(pa.Table.from_struct_array(pc.list_flatten(lists)).to_pandas())
