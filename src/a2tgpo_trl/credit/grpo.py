"""GRPO: every turn has the advantage of its completion."""

from typing import Any

from .base import Estimator, TurnCredit, Turns


class GRPO(Estimator):
    """TRL's outcome advantage alone. Nothing is measured, and all options default to what `GRPOTrainer` does."""

    paper = "arXiv 2402.03300"

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        return TurnCredit(turns.outcome)
