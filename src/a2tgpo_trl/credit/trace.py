"""TRACE (arXiv 2607.13988): how far the next turns close the gap to certainty, added to the outcome."""

from typing import Any

import torch

from ..functional import belief_progress, turn_advantages, windowed_mean
from .base import Estimator, TurnCredit, Turns


class TRACE(Estimator):
    """
    Log-ratios of the gap between belief and certainty. They sum to that of the whole rollout, whatever its number of turns.

    Nothing is compared within the group. The paper's beliefs are a frozen reference's: `belief_model="reference"`.

    Args:
        window (`int`, default 3): Turns that are looked ahead, the turn itself included.
        fill (`float`, default 2.0): Weight of the outcome in turns whose window reaches the last tool turn.
    """

    paper = "arXiv 2607.13988"
    options = ("turn_advantage_coef", "turn_gamma", "turn_credit_groups", "belief_measure", "answer_aliases")
    signals = ("beliefs",)
    columns = ("belief_progress",)
    defaults = {"turn_advantage_coef": 0.2, "turn_gamma": 0.8}

    def __init__(self, window: int = 3, fill: float = 2.0):
        self.window, self.fill = window, fill

    def check(self, options: Any) -> None:
        if options.belief_measure != "logprob":
            raise ValueError(
                f"belief_measure={options.belief_measure!r} is a probability, and advantage_estimator='trace' takes the gap of a "
                "log-probability to 0: choose 'logprob'."
            )
        if options.answer_aliases == "logsumexp":
            raise ValueError(
                "answer_aliases='logsumexp' adds probabilities, whose logarithm may lie above 0, and advantage_estimator='trace' takes "
                "the gap of a log-probability to 0: choose 'max' or 'first'."
            )

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        turns = turns.counted(options.turn_credit_groups)
        progress = belief_progress(turns.signals["beliefs"], turns.belief_before)  # δ, (N, K)
        turn = torch.arange(progress.size(1), device=progress.device)
        left = (
            (turns.num_tool_turns.unsqueeze(1) - turn).clamp(min=0).to(progress.dtype)
        )  # tool turns from this one on
        outcome = self.fill * options.turn_gamma**left * turns.outcome.unsqueeze(1)
        ahead = windowed_mean(progress, options.turn_gamma, self.window)
        ahead = ahead + torch.where(left <= self.window, outcome, 0.0)  # c
        return TurnCredit(
            turn_advantages(turns.outcome, ahead, options.turn_advantage_coef), columns={"belief_progress": progress}
        )
