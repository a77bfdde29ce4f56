"""Turn-level importance ratio (equation 7)."""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Where the log ratio of a whole turn is cut: the ratio of a long one overflows."""


def turn_log_ratio(log_ratio: Tensor, turn_ids: Tensor, reduction: str = "mean") -> Tensor:
    """
    Mean log ratio of each token's turn, `mean_{t∈turn}(log π(t) - log π_old(t))`, or their sum.

    Args:
        log_ratio (`Tensor`, shape `(B, T)`):
            Per-token log importance ratio.
        turn_ids (`Tensor`, shape `(B, T)`, long):
            Turn of each token, -1 off-turn.
        reduction (`str`):
            `"mean"`, or `"sum"`.

    Returns:
        `Tensor`, shape `(B, T)`: the turn's mean or sum on each of its tokens, 0 off-turn.

    Example:
        >>> turn_log_ratio(torch.tensor([[0.1, 0.3, 9.0, 0.5]]), torch.tensor([[0, 0, -1, 1]]))
        tensor([[0.2000, 0.2000, 0.0000, 0.5000]])
    """
    on_turn = turn_ids >= 0
    # A completion of T tokens has at most T turns, so T slots serve without asking the device for their number
    slot = turn_ids.clamp(min=0)
    sums = torch.zeros_like(log_ratio).scatter_add(1, slot, log_ratio.where(on_turn, 0.0))
    if reduction == "mean":
        sizes = torch.zeros_like(log_ratio).scatter_add(1, slot, on_turn.to(log_ratio.dtype))
        sums = sums / sizes.clamp(min=1)
    return sums.gather(1, slot).where(on_turn, 0.0)


def turn_level_old_logps(logps: Tensor, old_logps: Tensor, turn_ids: Tensor, reduction: str = "mean") -> Tensor:
    """
    Old log-probabilities that turn a token-level loss into the turn-level one.

    With `old' = sg(log π) - turn_mean(log π - log π_old)`, the token ratio `exp(log π - old')` has the value of the
    turn's geometric-mean ratio and the gradient of `log π(t)`. The sum of the log ratio over a turn is unchanged.

    With the reduction `"sum"` the value is that of the ratio of the whole turn, the product over its tokens: the terms of
    its tokens add up to its gradient. The sum of the log ratio is not kept then, and its absolute value is at most 20; an infinite
    one is no large ratio but a broken number, and stays.

    Args:
        logps (`Tensor`, shape `(B, T)`):
            Log-probabilities under the policy being trained.
        old_logps (`Tensor`, shape `(B, T)`):
            Log-probabilities under the policy that wrote the completions.
        turn_ids (`Tensor`, shape `(B, T)`, long):
            Turn of each token, -1 off-turn.
        reduction (`str`):
            `"mean"`, or `"sum"` for the product of ratios.

    Returns:
        `Tensor`, shape `(B, T)`, without gradient, at least float32. Off-turn it equals `logps`, a ratio of 1.
    """
    # A clip range of 3e-3 lies below the resolution of half precision
    dtype = torch.promote_types(logps.dtype, torch.float32)
    logps, old_logps = logps.detach().to(dtype), old_logps.detach().to(dtype)
    log_ratio = turn_log_ratio(logps - old_logps, turn_ids, reduction)
    if reduction == "sum":
        log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).where(log_ratio.isfinite(), log_ratio)
    return logps - log_ratio
