"""The numbers of a run's turns, without their texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
MOST_TOOLS = MOST_LINES - 1
"""What a model calls has any name; those called least are put together, as one more."""
OTHER_TOOLS = "other tools"
_REWARDS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float32())]))


@dataclass(frozen=True)
class Measures:
    """
    What was measured of turns; NaN where there is nothing.

    Attributes:
        turns (`DataFrame`): A row for each turn: `NUMBERS`, `stop_reason`, and `is_last`, whether its rollout ended there.
        calls (`DataFrame`): A row for each tool call: `step`, `name`, `failed` (0 or 1) and `seconds`.
        rewards (`DataFrame`): A row for each reward of a rollout: `step`, `name` and `value`.
    """

    turns: pd.DataFrame
    calls: pd.DataFrame
    rewards: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> "Measures":
        """Read them."""
        turns, calls, rewards = [], [], []
        for table in run.batches([*NUMBERS, "stop_reason", "calls", "rewards"]):
            turns.append(table.drop(["calls", "rewards"]).to_pandas())
            calls.append(
                _items(table, "calls")[["step", "name", "failed", "seconds"]]
            )  # texts are many times as large
            rewards.append(_items(table.filter(pc.equal(table["turn"], 0)), "rewards", _REWARDS))
        turns = _joined(turns, [*NUMBERS, "stop_reason"])
        turns[NUMBERS] = turns[NUMBERS].astype(float).replace([math.inf, -math.inf], math.nan)
        turns["is_last"] = turns["turn"] == turns["num_turns"] - 1
        calls = _joined(calls, ["step", "name", "failed", "seconds"])
        calls["name"] = calls["name"].where(
            calls["name"].isin(calls["name"].value_counts().index[:MOST_TOOLS]), OTHER_TOOLS
        )
        rewards = _joined(rewards, ["step", "name", "value"])
        rewards["value"] = rewards["value"].astype(float).replace([math.inf, -math.inf], math.nan)
        return cls(turns, calls.astype({"failed": float, "seconds": float}), rewards)

    @property
    def rollouts(self) -> pd.DataFrame:
        """The first turn of each rollout, which tells what holds for all of it."""
        return self.turns[self.turns["turn"] == 0]

    @property
    def scored(self) -> pd.DataFrame:
        """The turns that have an information gain; with an estimator that measures none, no turn has."""
        return self.turns[self.turns["information_gain"].notna()]


def _joined(frames: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _items(table: pa.Table, column: str, kind: pa.DataType | None = None) -> pd.DataFrame:
    """A row for each item of a column of lists, with the step of its turn."""
    lists = table[column].combine_chunks()
    lists = lists if kind is None else lists.cast(kind)
    parents = table.select(["step"]).take(pc.list_parent_indices(lists)).to_pandas()
    return parents.join(pa.Table.from_struct_array(pc.list_flatten(lists)).to_pandas())
