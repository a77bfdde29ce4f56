"""A²TGPO (arXiv 2605.06200): gains compared within (prompt, turn index), added to the outcome."""

from typing import Any

from torch import Tensor

from ..functional import (
    accumulate,
    adaptive_clip_scale,
    normalize_groups,
    normalize_turn_groups,
    turn_advantages,
)
from .base import Estimator, TurnCredit, Turns


class A2TGPO(Estimator):
    """Information gain, normalised, accumulated and added to the outcome advantage; it moves the turn's clip range too."""

    paper = "arXiv 2605.06200"
    options = (
        "turn_advantage_coef",
        "turn_clip_strength",
        "turn_normalization",
        "turn_rescale",
        "turn_gamma",
        "turn_credit_groups",
        "gain_noise_floor",
    )
    signals = ("beliefs",)
    columns = ("normalized_gain",)
    defaults = {"importance_sampling_level": "turn", "loss_type": "grpo", "skip_empty_updates": True}
    off_policy = True

    def check(self, options: Any) -> None:
        if options.turn_normalization == "none" and options.gain_noise_floor:
            raise ValueError(
                f"gain_noise_floor={options.gain_noise_floor} has no effect with turn_normalization='none', which divides by no "
                "deviation: leave it at 0, or normalise."
            )

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted(options.turn_credit_groups)
        gains = turns.information_gain  # (2)
        normalized = _normalize(gains, turns.num_generations, options)  # (3)
        to_come = accumulate(normalized, options.turn_gamma, options.turn_rescale)  # (4)
        return TurnCredit(
            turn_advantages(turns.outcome, to_come, options.turn_advantage_coef),  # (5)
            adaptive_clip_scale(normalized, options.turn_clip_strength),  # (6)
            columns={"normalized_gain": normalized},
        )


def _normalize(gains: Tensor, num_generations: int, options: Any) -> Tensor:
    if options.turn_normalization == "none":
        return gains
    normalize = normalize_turn_groups if options.turn_normalization == "turn_group" else normalize_groups
    return normalize(gains, num_generations, floor=options.gain_noise_floor)
