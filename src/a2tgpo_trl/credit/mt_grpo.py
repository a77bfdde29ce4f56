"""MT-GRPO (arXiv 2505.11821): the reward of each turn, compared within (prompt, turn index), added to the outcome."""

from .returns import Returns


class MTGRPO(Returns):
    """A turn earns its own reward, not later ones, beside the outcome. A turn without a reward has the outcome alone."""

    paper = "arXiv 2505.11821"
    defaults = Returns.defaults | {"turn_gamma": 0.0, "turn_comparison": "turn", "turn_outcome": "added"}
