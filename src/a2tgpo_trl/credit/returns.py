"""Returns of turns, compared within a set: the family that GTPO and MT-GRPO belong to."""

from math import nan
from typing import Any

from torch import Tensor

from ..functional import accumulate, comparison_sets, standardize, turn_advantages, with_outcome
from .base import Estimator, TurnCredit, Turns


class Returns(Estimator):
    """Turn rewards, summed and standardised in either order; the outcome is one of them, or added to the result."""

    options = (
        "turn_advantage_coef",
        "turn_gamma",
        "turn_comparison",
        "turn_aggregation",
        "turn_baseline",
        "turn_scale",
        "turn_outcome",
        "turn_credit_groups",
    )
    optional_signals = ("turn_rewards", "states")
    columns = ("turn_return",)
    defaults = {"turn_advantage_coef": 1.0}

    def needs(self, options: Any) -> tuple[str, ...]:
        by_state = options.turn_comparison in ("state", "origin")
        return ("turn_rewards",) * (options.turn_outcome == "added") + ("states",) * by_state

    def check(self, options: Any) -> None:
        if options.turn_baseline == "none" and not options.turn_scale:
            raise ValueError(
                "turn_baseline='none' and turn_scale=False leave nothing to compare: choose the baseline 'mean' or "
                "'leave_one_out', or set turn_scale=True."
            )

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns, inside = turns.counted(options.turn_credit_groups), options.turn_outcome == "inside"
        rewards = turns.turn_rewards  # r, (N, K)
        if inside:
            rewards = with_outcome(options.turn_advantage_coef * rewards, turns.rewards, turns.num_turns)
        if options.turn_aggregation == "sum_then_standardize":
            returns = accumulate(_without_gaps(rewards, options.turn_gamma), options.turn_gamma, rescale=False)  # D
            compared = _compare(returns, turns, options)
        else:
            compared = returns = accumulate(_compare(rewards, turns, options), options.turn_gamma, rescale=False)
        if inside:
            advantages = compared.where(~compared.isnan(), turns.outcome.unsqueeze(1))
        else:
            advantages = turn_advantages(turns.outcome, compared, options.turn_advantage_coef)
        return TurnCredit(advantages, columns={"turn_return": returns})


def _without_gaps(rewards: Tensor, gamma: float) -> Tensor:
    """Rewards, 0 for a turn that has none itself and is followed by one that counts."""
    follows = rewards.isnan().logical_not().flip(1).cumsum(1).flip(1) > 0
    return rewards.nan_to_num().where(follows, nan) if gamma > 0 else rewards


def _compare(values: Tensor, turns: Turns, options: Any) -> Tensor:
    sets = comparison_sets(options.turn_comparison, turns.num_generations, values, turns.signals.get("states"))
    baseline = options.turn_baseline
    return standardize(values, sets, baseline != "none", options.turn_scale, leave_one_out=baseline == "leave_one_out")
