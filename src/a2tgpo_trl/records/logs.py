"""Puts the credit of a batch where TRL keeps what it logs."""

from typing import Any

import torch

from ..batch import GenerationBatch
from .metrics import credit_metrics, rows_of_turns, turn_table


def log_credit(batch: GenerationBatch, metrics: dict[str, list[float]], logs: dict[str, Any]) -> None:
    """
    Log the credit of a batch, as TRL logs rewards and completions; to be called by all processes.

    Args:
        batch ([`GenerationBatch`]): With its credit.
        metrics (`dict[str, list[float]]`): TRL's, to which each value is appended.
        logs (`dict`): TRL's completions table. Its outcome advantages are replaced by means over the tokens that are trained
            on.
    """
    turns, credit = batch.turns, batch.credit
    for name, value in credit_metrics(turns, credit).items():
        metrics[name].append(value)
    if batch.answers is not None:
        unanswerable = torch.tensor([float(batch.answers.count([]))], device=turns.outcome.device)
        metrics["information_gain/rows_without_answer"].append(batch.accelerator.gather(unanswerable).sum().item())
    if batch.tensors["advantages"].dim() == 2:
        advantages, ids = batch.tensors["advantages"], batch.tensors["turn_ids"]
        means = advantages.sum(dim=1) / (ids >= 0).sum(dim=1).clamp(min=1)  # advantages are 0 off-turn
        means, logged = batch.accelerator.gather(means), logs["advantages"]
        for _ in range(min(len(means), len(logged))):
            logged.pop()
        logged.extend(means.tolist())
    for column, values in turn_table(turns, credit).items():
        logs["extra"][column].extend(rows_of_turns(values, turns.num_turns))
