"""Turn-PPO (arXiv 2512.17008): generalised advantages over turns, from a critic."""

from typing import Any

from ..functional import generalized_advantages, whiten, with_outcome
from .base import Estimator, TurnCredit, Turns


class TurnPPO(Estimator):
    """
    A turn earns what came of it beyond what a critic expected before it. Nothing is compared within the prompt.

    Rewards are those of turns, and the reward of the rollout at its last one. A rollout that a limit cut off goes on, for the sum,
    with what the critic expects of its last state.
    """

    paper = "arXiv 2512.17008"
    options = ("turn_gamma", "gae_lambda", "whiten_advantages")
    signals = ("values",)
    optional_signals = ("turn_rewards",)
    columns = ("value", "return")
    defaults = {"importance_sampling_level": "turn_product", "turn_gamma": 0.99}

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted("all")
        values = turns.signals["values"]  # V, (N, K + 1)
        rewards = with_outcome(turns.turn_rewards, turns.rewards, turns.num_turns)  # r, (N, K)
        advantages = generalized_advantages(rewards, values, options.turn_gamma, options.gae_lambda)
        targets = advantages + values[:, :-1]
        given = whiten(advantages) if options.whiten_advantages else advantages
        columns = {"value": values[:, :-1].where(~targets.isnan(), float("nan")), "return": targets}
        return TurnCredit(given.nan_to_num(), columns=columns, value_targets=targets)
