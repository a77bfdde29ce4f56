"""Belief as a second reward: what a rollout added to the belief in the true answer, for all its turns alike."""

from typing import Any

from .base import Estimator, TurnCredit, Turns


class BeliefBonus(Estimator):
    """
    The information gains of a rollout together, added to the outcome advantage of each of its turns, the answer too.

    Where every observation was scored, and with `gain_from="turn_start"`, the gains add up to the belief after the last one less that
    at the prompt. No turn gets credit of its own, and the bonus is compared with no other rollout: it is a control for credit by
    turns, and a second reward, which does not depend on errors of the first.
    """

    options = ("turn_advantage_coef", "turn_credit_groups")
    signals = ("beliefs",)
    defaults = {
        "importance_sampling_level": "turn",
        "loss_type": "grpo",
        "skip_empty_updates": True,
        "turn_advantage_coef": 2.0,
        "belief_measure": "prob",
    }

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        gained = turns.counted(options.turn_credit_groups).information_gain.nansum(dim=1)
        advantages = turns.outcome + options.turn_advantage_coef * gained
        return TurnCredit(advantages.unsqueeze(1).expand(-1, turns.max_turns))
