"""Stop-aware A²TGPO, which is in no paper: whoever answers is compared with whoever goes on."""

from typing import Any

import torch
from torch import Tensor

from ..functional import (
    accumulate,
    adaptive_clip_scale,
    comparison_sets,
    normalize_turn_groups,
    set_sizes,
    standardize,
    turn_advantages,
)
from .base import Estimator, TurnCredit, Turns


class A2TGPOStop(Estimator):
    """
    Gains to come, minus their mean over the group's other completions that decided at the same turn.

    An answer turn is a decision like a tool turn: it ends the gains, and has 0 to come. Comparing tool turns alone gives each
    turn index the mean 0, so that "search again or answer?" gets no credit at all. Without a scale the expected credit is the
    gradient of the sum of gains. Where most tool turns lower the belief, answering at once is what this rewards.
    """

    options = (
        "turn_advantage_coef",
        "turn_clip_strength",
        "turn_gamma",
        "turn_scale",
        "turn_credit_groups",
        "gain_noise_floor",
    )
    signals = ("beliefs",)
    columns = ("normalized_gain", "turn_return")
    defaults = {
        "importance_sampling_level": "turn",
        "loss_type": "grpo",
        "skip_empty_updates": True,
        "turn_scale": False,
    }
    off_policy = True

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted(options.turn_credit_groups)
        gains, floor = turns.information_gain, options.gain_noise_floor
        normalized = normalize_turn_groups(gains, turns.num_generations, floor=floor)
        returns = accumulate(_with_answer_turn(gains, turns), options.turn_gamma, rescale=False)
        deciding = comparison_sets("turn", turns.num_generations, returns)
        compared = standardize(returns, deciding, scale=options.turn_scale, leave_one_out=True, floor=floor)
        if not options.turn_scale:  # nobody else got there: there is no mean to subtract
            compared = torch.where(set_sizes(returns, deciding) == 1, returns, compared)
        return TurnCredit(
            turn_advantages(turns.outcome, compared, options.turn_advantage_coef),
            adaptive_clip_scale(normalized, options.turn_clip_strength),
            columns={"normalized_gain": normalized, "turn_return": returns},
        )


def _with_answer_turn(gains: Tensor, turns: Turns) -> Tensor:
    """Gains, and 0 for the answer turn of a completion whose belief before it is known."""
    turn = torch.arange(gains.size(1), device=gains.device)
    answer = turns.answered.unsqueeze(1) & (turn == turns.num_tool_turns.unsqueeze(1))
    return torch.where(answer & ~turns.signals["beliefs"][:, :-1].isnan(), 0.0, gains)
