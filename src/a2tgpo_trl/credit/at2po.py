"""AT²PO (arXiv 2601.04767): outcomes of leaves, backed up the tree of their turns."""

from typing import Any, Literal

import torch

from ..functional import tree_values
from .base import Estimator, TurnCredit, Turns


class AT2PO(Estimator):
    """
    Each turn has the value of its node: a mean of what became of the leaves below it, weighted by surprisal.

    It needs `tree_chains`. Without an expansion (`tree_chains=num_generations`) each turn has the outcome's advantage, as with GRPO.

    Args:
        baseline (`str`, default `"none"`): What is subtracted from a turn's value: `"none"`, nothing; `"parent"`, the value of the
            turn before it, or of the prompt; `"root"`, the value of the prompt.
    """

    paper = "arXiv 2601.04767"
    signals = ("tree",)
    columns = ("value",)
    defaults = {"importance_sampling_level": "turn", "loss_type": "grpo", "skip_empty_updates": True}
    off_policy = True

    def __init__(self, baseline: Literal["none", "parent", "root"] = "none"):
        if baseline not in ("none", "parent", "root"):
            raise ValueError(f"baseline must be 'none', 'parent' or 'root', got {baseline!r}.")
        self.baseline = baseline

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        outcomes = turns.outcome.masked_fill(turns.unscored, torch.nan)
        tree = turns.signals["nodes"], turns.signals["surprisals"]
        values = tree_values(*tree, outcomes, turns.num_generations)  # V, (N, K + 1)
        value = advantages = values[:, 1:]
        if self.baseline != "none":
            advantages = value - (values[:, :-1] if self.baseline == "parent" else values[:, :1])
        # Where no leaf below has a reward, the outcome advantages are 0
        return TurnCredit(
            advantages.where(~value.isnan(), turns.outcome.unsqueeze(1)), columns={"value": value.clone()}
        )
