"""Turn records and metrics as wandb and trackio show them."""

import importlib
from collections.abc import Sequence
from typing import Any

from .tables import as_json

SUMMARIES = {
    "train/reward": "max",
    "train/rewards/*": "max",
    "eval/reward": "max",
    "eval/rewards/*": "max",
    "train/information_gain/*": "mean",
    "train/turns/*": "mean",
    "train/clip_ratio/*": "mean",
    "train/tools/*": "mean",
    "train/updates/*": "mean",
    "train/step_time": "mean",
}
"""What wandb's table of runs says of a metric; of all others it says the last value."""


def describe_metrics(report_to: Sequence[str]) -> None:
    """Tell wandb, where it tracks the run, how to sum metrics up; all are drawn over the optimizer steps."""
    wandb = _active("wandb", report_to)
    if wandb is None:
        return
    for name, summary in SUMMARIES.items():
        wandb.define_metric(name, step_metric="train/global_step", step_sync=True, summary=summary)


def log_table(rows: list[dict[str, Any]], step: int, report_to: Sequence[str]) -> None:
    """
    Send turn records to the trackers that show tables.

    Args:
        rows (`list[dict]`): By column of [`SCHEMA`]; tool calls and rewards become JSON, and
            thumbnails are left out.
        step (`int`): Optimizer steps done.
        report_to (`Sequence[str]`): The trackers of the run.
    """
    import pandas as pd

    for name in ("wandb", "trackio"):
        if tracker := _active(name, report_to):
            columns = dict.fromkeys(name for row in rows for name in row if name != "thumbnails")
            frame = pd.DataFrame([{name: _cell(row.get(name)) for name in columns} for row in rows])
            tracker.log({"turns": tracker.Table(dataframe=frame), "train/global_step": step})


def _cell(value: Any) -> Any:
    return as_json(value) if isinstance(value, (list, dict)) else value


def _active(name: str, report_to: Sequence[str]) -> Any:
    """A tracker's module, if it tracks this run."""
    if name not in report_to:
        return None
    module = importlib.import_module(name)
    return None if name == "wandb" and module.run is None else module
