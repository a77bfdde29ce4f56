"""GiGPO (arXiv 2505.10978): returns compared among turns that set out from the same state, added to the outcome."""

from typing import Any

from ..functional import accumulate, comparison_sets, set_sizes, standardize, turn_advantages, with_outcome
from .base import Estimator, TurnCredit, Turns


class GiGPO(Estimator):
    """Returns of turns that start from the same state of a prompt are compared. A state of one turn gives no credit."""

    paper = "arXiv 2505.10978"
    options = ("turn_advantage_coef", "turn_gamma", "turn_scale", "turn_credit_groups")
    signals = ("states",)
    optional_signals = ("turn_rewards",)
    columns = ("turn_return", "lone_state")
    defaults = {"turn_advantage_coef": 1.0, "turn_gamma": 0.95, "turn_scale": False}

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted(options.turn_credit_groups)
        rewards = with_outcome(turns.turn_rewards, turns.rewards, turns.num_turns)
        returns = accumulate(rewards, options.turn_gamma, rescale=False)  # (N, K)
        states = comparison_sets("state", turns.num_generations, returns, turns.signals["states"])
        step = standardize(returns, states, scale=options.turn_scale)
        alone = (set_sizes(returns, states) == 1).to(returns.dtype).where(~returns.isnan(), returns)
        return TurnCredit(
            turn_advantages(turns.outcome, step, options.turn_advantage_coef),
            columns={"turn_return": returns, "lone_state": alone},
        )
