"""Advantages from a critic: generalised advantage estimation over turns, and what the critic learns from.

A turn that does not exist, or whose completion has no reward, is NaN throughout.
"""

import torch
from torch import Tensor

from .comparison import standardize
from .credit import accumulate


def generalized_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """
    Generalised advantages of turns, `A_k = Σ_{j≥k} (γλ)^(j-k) δ_j` with `δ_k = r_k + γ V_{k+1} - V_k` (arXiv 1506.02438).

    Args:
        rewards (`Tensor`, shape `(N, K)`):
            Reward of each turn, the outcome inside; NaN where there is no turn.
        values (`Tensor`, shape `(N, K + 1)`):
            `V` before each turn, and after a last turn `n` at index `n`: 0 if the rollout ended there, the value of its last state
            if a limit cut it off; NaN elsewhere.
        gamma (`float`):
            Discount γ per turn.
        lam (`float`):
            λ. With 0 a turn is judged by the next value alone, with 1 by all rewards to come.

    Returns:
        `Tensor`, shape `(N, K)`: NaN where there is no turn.

    Example:
        >>> nan = float("nan")
        >>> generalized_advantages(torch.tensor([[0.0, 1.0, nan]]), torch.tensor([[0.5, 0.75, 0.0, nan]]), gamma=1.0, lam=0.5)
        tensor([[0.3750, 0.2500,    nan]])
    """
    return accumulate(rewards + gamma * values[:, 1:] - values[:, :-1], gamma * lam, rescale=False)


def whiten(values: Tensor) -> Tensor:
    """
    Values with mean 0 and standard deviation 1 over all turns of a batch, each turn once.

    Args:
        values (`Tensor`, shape `(N, K)`):
            Values, NaN where absent.

    Returns:
        `Tensor`, shape `(N, K)`: NaN stays NaN; values that are all equal become 0.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0], [float("nan"), 2.0]]))
        tensor([[-1.2247,  1.2247],
                [    nan,  0.0000]])
    """
    return standardize(values, torch.zeros(values.shape, dtype=torch.long, device=values.device))


def value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """
    Squared error of a critic, `max((V - T)², (V_c - T)²)`: `V_c` is `V` within `clip` of the old value.

    Args:
        values (`Tensor`):
            `V` of the critic that is trained.
        old_values (`Tensor`, the same shape):
            Its values when the rollouts were played.
        targets (`Tensor`, the same shape):
            `T`.
        clip (`float`, *optional*):
            Largest change that lowers the error. `None` for no limit.

    Returns:
        `Tensor`, the same shape: the error of each turn.

    Example:
        >>> value_loss(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), clip=0.25)
        tensor([0.5625, 0.2500])
    """
    errors = (values - targets) ** 2
    if clip is None:
        return errors
    clipped = values.clamp(old_values - clip, old_values + clip)
    return torch.maximum(errors, (clipped - targets) ** 2)


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """
    Share of the variance of targets that values explain, `1 - Var(T - V) / Var(T)`.

    Args:
        values (`Tensor`, shape `(N, K)`), targets (`Tensor`, shape `(N, K)`):
            Values and targets; a turn without a target, NaN, does not count.

    Returns:
        `Tensor`, scalar: 1 for perfect values, 0 for constant ones, below 0 for worse; NaN if the targets do not differ.

    Example:
        >>> explained_variance(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.7500)
    """
    values, targets = values[~targets.isnan()], targets[~targets.isnan()]
    variance = _variance(targets)
    return torch.where(variance > 0, 1 - _variance(targets - values) / variance, torch.nan)


def _variance(values: Tensor) -> Tensor:
    return (values - values.mean()).square().mean()
