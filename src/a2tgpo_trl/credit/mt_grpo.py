"""MT-GRPO (arXiv 2505.11821): the reward of each turn, compared within (prompt, turn index), added to the outcome."""

from .returns import Returns


class MTGRPO(Returns):
    """A turn's own reward and none of the later ones; a turn without a reward has the outcome alone."""

    paper = "arXiv 2505.11821"
    defaults = Returns.defaults | {"turn_gamma": 0.0, "turn_comparison": "turn", "turn_outcome": "added"}
