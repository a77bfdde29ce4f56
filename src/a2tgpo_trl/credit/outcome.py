"""The outcome advantage that estimators start from."""

import torch
from torch import Tensor


def without_rounding(outcome: Tensor, unscored: Tensor, num_generations: int) -> Tensor:
    """
    Outcome advantages that are 0 in groups of equal rewards, completions without one left aside.

    There TRL's `reward - mean` can leave rounding, such as 1e-4 for eight rewards of 0.3: a gradient that is not exactly
    zero, which Adam would make a full step of.

    Args:
        outcome (`Tensor`, shape `(N,)`): Outcome advantages of whole groups.
        unscored (`Tensor`, shape `(N,)`): Completions that no reward function scored.
        num_generations (`int`): Completions per prompt, in consecutive rows.

    Returns:
        `Tensor`, shape `(N,)`
    """
    groups, aside = outcome.unflatten(0, (-1, num_generations)), unscored.unflatten(0, (-1, num_generations))
    lowest = groups.masked_fill(aside, torch.inf).amin(dim=1, keepdim=True)
    highest = groups.masked_fill(aside, -torch.inf).amax(dim=1, keepdim=True)
    equal = lowest == highest
    return groups.masked_fill(equal, 0.0).flatten()
