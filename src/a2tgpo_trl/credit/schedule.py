"""The weight α of turn credit over a run."""

from types import SimpleNamespace

from .base import Turns

SCHEDULES = ("constant", "linear", "mixed_share")
"""What the option `turn_advantage_schedule` can be."""


def scheduled(options: SimpleNamespace, schedule: str, progress: float, turns: Turns) -> SimpleNamespace:
    """
    The options of an estimator for one batch, with the weight α as it is then.

    Args:
        options (`SimpleNamespace`): With `turn_advantage_coef` where the estimator reads it.
        schedule (`str`): `"constant"`: α stays. `"linear"`: it falls to 0 at the end of training. `"mixed_share"`: it is
            multiplied by the share of completions in groups whose rewards differ.
        progress (`float`): Part of the training steps that are done, from 0 to 1.
        turns ([`Turns`]): Of the batch.

    Returns:
        `SimpleNamespace`: the options themselves where nothing changes.
    """
    if schedule == "constant" or not hasattr(options, "turn_advantage_coef"):
        return options
    factor = 1 - progress if schedule == "linear" else turns.mixed.float().mean().item()
    return SimpleNamespace(**vars(options) | {"turn_advantage_coef": factor * options.turn_advantage_coef})
