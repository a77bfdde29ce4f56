"""Credit that no one should want: what is left of a method when its signal is taken away."""

from typing import Any

from a2tgpo_trl.credit import Estimator, TurnCredit, Turns


class OutcomeCredit(Estimator):
    """The reward itself, times `scale`, beside GRPO's advantage on tool turns: raw credit of a belief that knows the outcome and nothing else."""

    defaults = {"importance_sampling_level": "turn"}

    def __init__(self, scale: float = 2.0):
        self.scale = scale

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        places = turns.outcome.new_ones(turns.num_turns.numel(), int(turns.num_turns.max())).cumsum(1)
        tool_turns = places <= turns.num_tool_turns.unsqueeze(1)
        return TurnCredit(turns.outcome.unsqueeze(1) + self.scale * turns.rewards.unsqueeze(1) * tool_turns)


CONTROLS = {"outcome": OutcomeCredit}
"""Names of the grid → classes of this file."""
