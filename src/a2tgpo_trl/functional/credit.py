"""Credit of a turn: information gain, sums of gains or rewards to come, turn advantages and clip scales.

A turn without a process signal (answer turns, padding, turns that could not be scored) is NaN throughout.
"""

import torch
from torch import Tensor


def information_gain(beliefs: Tensor, before: Tensor | None = None) -> Tensor:
    """
    Information gain of each tool turn, `g_k = s(c_{k+1}) - s(c_k)` (equation 2).

    Args:
        beliefs (`Tensor`, shape `(N, K + 1)`):
            Belief in the true answer at the prompt and after each turn's observation; NaN where absent.
        before (`Tensor`, shape `(N, K)`, *optional*):
            Belief that each turn's gain is measured from, in place of `s(c_k)`; NaN where absent.

    Returns:
        `Tensor`, shape `(N, K)`: gains, in the unit of the beliefs (nats per answer token for log-probabilities); NaN
        where either belief is absent.

    Example:
        >>> information_gain(torch.tensor([[-4.0, -4.5, -1.5, float("nan")]]))
        tensor([[-0.5000,  3.0000,     nan]])
    """
    return beliefs[:, 1:] - (beliefs[:, :-1] if before is None else before)


def accumulate(normalized: Tensor, gamma: float = 1.0, rescale: bool = True) -> Tensor:
    """
    Discounted sum of the gains to come, `D_k = Σ_{j≥k} γ^(j-k) ĝ_j / √m_k` (equation 4).

    `m_k` counts the gains in the sum. It is `n - k` where every tool turn has a gain; a turn that could not be scored
    adds neither to the sum nor to the count. Of rewards, and without the rescale, it is the return-to-go.

    Args:
        normalized (`Tensor`, shape `(N, K)`):
            Normalised gains, NaN where absent.
        gamma (`float`):
            Discount per turn.
        rescale (`bool`):
            Whether to divide by `√m_k`, which keeps the scale of a sum of independent unit-variance terms.

    Returns:
        `Tensor`, shape `(N, K)`: accumulated gains; NaN stays NaN.

    Example:
        >>> accumulate(torch.tensor([[1.0, 3.0, float("nan")]]), gamma=0.5, rescale=False)
        tensor([[2.5000, 3.0000,    nan]])
    """
    present = ~normalized.isnan()  # (N, K)
    sums = normalized.nan_to_num() @ _discounts(normalized, gamma, normalized.size(1))  # (N, K)
    if rescale:
        terms = present.flip(1).cumsum(1).flip(1).clamp(min=1)  # (N, K) gains from turn k on
        sums = sums / terms.to(sums.dtype).sqrt()
    return sums.where(present, torch.nan)


def windowed_mean(values: Tensor, gamma: float, window: int) -> Tensor:
    """
    Discounted mean of the next values, `c_k = Σ_{j<J} γ^j x_{k+j} / Σ_{j<J} γ^j` (TRACE, arXiv 2607.13988).

    `J` is `window`, or what is left of the turns; a value that is absent adds neither to the sum nor to the weights.

    Args:
        values (`Tensor`, shape `(N, K)`):
            Values, NaN where absent.
        gamma (`float`):
            Discount per turn.
        window (`int`):
            Turns that are looked at, the turn itself included.

    Returns:
        `Tensor`, shape `(N, K)`: means; NaN stays NaN.

    Example:
        >>> windowed_mean(torch.tensor([[1.0, 4.0, 7.0]]), gamma=0.5, window=2)
        tensor([[2., 5., 7.]])
    """
    present, discounts = ~values.isnan(), _discounts(values, gamma, window)
    weights = present.to(values.dtype) @ discounts  # (N, K)
    return (values.nan_to_num() @ discounts / weights).where(present, torch.nan)


def belief_progress(beliefs: Tensor, before: Tensor | None = None, offset: float = 0.1) -> Tensor:
    """
    How far a turn closed the gap to certainty, `δ_k = log(d_k / d_{k+1})` with `d = offset - s` (TRACE, arXiv 2607.13988).

    Args:
        beliefs (`Tensor`, shape `(N, K + 1)`):
            Mean log-probability of the true answer at the prompt and after each turn's observation; NaN where absent.
        before (`Tensor`, shape `(N, K)`, *optional*):
            The one that each turn's progress is measured from, in place of that before the turn; NaN where absent.
        offset (`float`):
            What the gap is where the answer is certain, in nats; positive.

    Returns:
        `Tensor`, shape `(N, K)`: NaN where either belief is absent. Without `before`, sums over turns telescope to
        `log(d_0 / d_n)`.

    Example:
        >>> belief_progress(torch.tensor([[-3.9, -1.9, -3.9, float("nan")]]))
        tensor([[ 0.6931, -0.6931,     nan]])
    """
    before = beliefs[:, :-1] if before is None else before
    return (offset - before).log() - (offset - beliefs[:, 1:]).log()


def with_outcome(turn_rewards: Tensor, rewards: Tensor, num_turns: Tensor) -> Tensor:
    """
    Rewards of all turns with the outcome inside: `r_k`, and at the last turn `r_k + R` (GTPO, arXiv 2511.14846).

    Args:
        turn_rewards (`Tensor`, shape `(N, K)`):
            Turn rewards, NaN where a turn has none.
        rewards (`Tensor`, shape `(N,)`):
            Reward of each completion, NaN where it has none.
        num_turns (`Tensor`, shape `(N,)`, long):
            Turns of each completion.

    Returns:
        `Tensor`, shape `(N, K)`: a turn without a reward has 0; NaN where there is no turn, and where the completion has no
        reward.

    Example:
        >>> nan = float("nan")
        >>> with_outcome(torch.tensor([[-0.1, nan, nan]]), torch.tensor([1.0]), torch.tensor([2]))
        tensor([[-0.1000,  1.0000,     nan]])
    """
    left = num_turns.unsqueeze(1) - torch.arange(turn_rewards.size(1), device=turn_rewards.device)  # (N, K)
    outcome = torch.where(left == 1, rewards.unsqueeze(1), 0.0)
    exists = (left > 0) & ~rewards.isnan().unsqueeze(1)
    return (turn_rewards.nan_to_num() + outcome).where(exists, torch.nan)


def turn_advantages(outcome: Tensor, accumulated: Tensor, coef: float) -> Tensor:
    """
    Advantage of each turn, `A_k = Â + α D_k` (equation 5).

    Args:
        outcome (`Tensor`, shape `(N,)`):
            Outcome advantage of each completion.
        accumulated (`Tensor`, shape `(N, K)`):
            Accumulated gains, NaN where absent.
        coef (`float`):
            Weight α of the accumulated gains.

    Returns:
        `Tensor`, shape `(N, K)`: turn advantages, the outcome alone where there is no gain.

    Example:
        >>> turn_advantages(torch.tensor([1.0]), torch.tensor([[2.0, float("nan")]]), coef=0.3)
        tensor([[1.6000, 1.0000]])
    """
    return outcome.unsqueeze(1) + coef * accumulated.nan_to_num()


def discounted_outcome(outcome: Tensor, normalized: Tensor, gamma: float) -> Tensor:
    """
    Outcome as the last term of each turn's discounted sum, `γ^(n-k) Â` (IGPO, arXiv 2510.14967).

    Args:
        outcome (`Tensor`, shape `(N,)`):
            Outcome advantage of each completion.
        normalized (`Tensor`, shape `(N, K)`):
            Any value on tool turns, NaN elsewhere; tool turns come first, so `n` is one past the last of them.
        gamma (`float`):
            Discount per turn.

    Returns:
        `Tensor`, shape `(N, K)`: the outcome seen from each turn; undiscounted from the answer turn on.

    Example:
        >>> discounted_outcome(torch.tensor([8.0]), torch.tensor([[1.0, 1.0, float("nan")]]), gamma=0.5)
        tensor([[2., 4., 8.]])
    """
    turn = torch.arange(normalized.size(1), device=normalized.device)  # (K,)
    tool_turns = torch.where(normalized.isnan(), 0, turn + 1).amax(dim=1, keepdim=True)  # (N, 1)
    distance = (tool_turns - turn).clamp(min=0).to(outcome.dtype)  # (N, K)
    return outcome.unsqueeze(1) * gamma**distance


def adaptive_clip_scale(normalized: Tensor, strength: float) -> Tensor:
    """
    Factor of each turn's clip range, `c = 1 + β (2 sigmoid(ĝ) - 1)` (equation 6).

    Args:
        normalized (`Tensor`, shape `(N, K)`):
            The turn's own normalised gain, NaN where absent.
        strength (`float`):
            β in [0, 1): the factor lies in (1 - β, 1 + β).

    Returns:
        `Tensor`, shape `(N, K)`: factors, 1 where there is no gain.

    Example:
        >>> adaptive_clip_scale(torch.tensor([[0.0, 100.0, float("nan")]]), strength=0.3)
        tensor([[1.0000, 1.3000, 1.0000]])
    """
    return 1 + strength * (2 * torch.sigmoid(normalized.nan_to_num()) - 1)


def _discounts(like: Tensor, gamma: float, window: int) -> Tensor:
    """`γ^(j-k)` for the turns `j` (row) from turn `k` (column) on, `window` of them; `(K, K)`."""
    turn = torch.arange(like.size(1), device=like.device)
    distance = turn.unsqueeze(1) - turn
    ahead = (distance >= 0) & (distance < window)
    return torch.where(ahead, gamma ** distance.clamp(min=0).to(like.dtype), 0.0)
