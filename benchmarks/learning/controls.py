"""Credit that no one should want: what is left of a method when its signal is taken away."""

from typing import Any

from a2tgpo_trl.credit import BeliefBonus, Estimator, TurnCredit, Turns


class OutcomeCredit(Estimator):
    """The reward itself, times `scale`, beside GRPO's advantage on tool turns: raw credit of a belief that knows the outcome and nothing else."""

    defaults = {"importance_sampling_level": "turn"}

    scale = 2.0

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        places = turns.outcome.new_ones(turns.num_turns.numel(), int(turns.num_turns.max())).cumsum(1)
        tool_turns = places <= turns.num_tool_turns.unsqueeze(1)
        return TurnCredit(turns.outcome.unsqueeze(1) + self.scale * turns.rewards.unsqueeze(1) * tool_turns)


class OutcomeCreditOfRollouts(Estimator):
    """The reward itself, times `scale`, beside GRPO's advantage on every turn, the answer too: no turn gets its own credit."""

    defaults = {"importance_sampling_level": "turn"}
    scale = 2.0

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        return TurnCredit(turns.outcome + self.scale * turns.rewards)


CONTROLS = {
    "outcome": OutcomeCredit,
    "outcome_of_rollouts": OutcomeCreditOfRollouts,
    "belief_of_rollouts": BeliefBonus,
}
"""Names of the grid → classes of this file."""
