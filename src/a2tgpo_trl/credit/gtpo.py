"""GTPO (arXiv 2511.14846): discounted returns with the outcome inside, compared within the prompt."""

from .returns import Returns


class GTPO(Returns):
    """Returns-to-go of all turns of a prompt, standardised together: a turn that is further from success earns less."""

    paper = "arXiv 2511.14846"
    defaults = Returns.defaults | {"turn_gamma": 0.9}
