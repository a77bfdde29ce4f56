"""IGPO (arXiv 2510.14967): gains compared within the prompt, the outcome as last term of their sum."""

from typing import Any

import torch

from ..functional import accumulate, discounted_outcome, normalize_groups
from .base import Estimator, TurnCredit, Turns


class IGPO(Estimator):
    """Information gain, normalised over all turns of a prompt; the outcome is discounted by the tool turns before it."""

    paper = "arXiv 2510.14967"
    options = ("turn_gamma", "turn_credit_groups", "gain_noise_floor")
    signals = ("beliefs",)
    columns = ("normalized_gain",)
    defaults = {"importance_sampling_level": "turn", "loss_type": "grpo", "skip_empty_updates": True}
    off_policy = True

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted(options.turn_credit_groups)
        gains = turns.information_gain
        normalized = normalize_groups(gains, turns.num_generations, floor=options.gain_noise_floor)
        to_come = accumulate(normalized, options.turn_gamma, rescale=False)
        turn = torch.arange(gains.size(1), device=gains.device)
        tool_turns = torch.where(
            turn < turns.num_tool_turns.unsqueeze(1), 0.0, torch.nan
        )  # the unscorable ones as well
        outcome_part = discounted_outcome(turns.outcome, tool_turns, options.turn_gamma)
        advantages = outcome_part + to_come.nan_to_num()
        return TurnCredit(advantages, torch.ones_like(advantages), outcome_part, {"normalized_gain": normalized})
