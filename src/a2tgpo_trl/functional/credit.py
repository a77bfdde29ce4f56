"""Credit of a turn: information gain, its normalisation and accumulation, turn advantages and clip scales.

A turn without a process signal (answer turns, padding, turns that could not be scored) is NaN throughout.
"""

import torch
from torch import Tensor


def information_gain(beliefs: Tensor) -> Tensor:
    """
    Information gain of each tool turn, `g_k = s(c_{k+1}) - s(c_k)` (equation 2).

    Args:
        beliefs (`Tensor`, shape `(N, K + 1)`):
            Belief in the true answer at the prompt and after each turn's observation; NaN where absent.

    Returns:
        `Tensor`, shape `(N, K)`: gains, in the unit of the beliefs (nats per answer token for log-probabilities); NaN
        where either belief is absent.

    Example:
        >>> information_gain(torch.tensor([[-4.0, -4.5, -1.5, float("nan")]]))
        tensor([[-0.5000,  3.0000,     nan]])
    """
    return beliefs[:, 1:] - beliefs[:, :-1]


def standardize(
    values: Tensor,
    set_ids: Tensor,
    center: bool = True,
    scale: bool = True,
    leave_one_out: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """
    Compare each turn with those of its comparison set: `(x - μ) / (σ + ε)` with the population deviation of the set.

    Args:
        values (`Tensor`, shape `(N, K)`):
            Gains, rewards or returns, NaN where a turn has none.
        set_ids (`Tensor`, shape `(N, K)`, long):
            Which set a turn belongs to, by any number. A turn that is NaN is a member of none.
        center (`bool`):
            Whether to subtract the mean μ.
        scale (`bool`):
            Whether to divide by `σ + ε`.
        leave_one_out (`bool`):
            Whether μ is the mean of the set's other members. σ remains that of the whole set.
        eps (`float`):
            Added to the deviation, in the unit of the values.

    Returns:
        `Tensor`, shape `(N, K)`: NaN stays NaN; a set of one, or of equal values, gives 0.

    Raises:
        ValueError: If the shapes differ, nothing is to be done (neither `center` nor `scale`), or a mean is asked for by
            `leave_one_out` that `center=False` does not subtract.

    Example:
        >>> returns = torch.tensor([[1.0, 5.0], [3.0, float("nan")]])
        >>> standardize(returns, torch.tensor([[7, 8], [7, 7]]), scale=False)
        tensor([[-1.,  0.],
                [ 1., nan]])
        >>> standardize(returns, torch.zeros(2, 2, dtype=torch.long), scale=False, leave_one_out=True)
        tensor([[-3.,  3.],
                [ 0., nan]])
    """
    if values.shape != set_ids.shape:
        raise ValueError(
            f"set_ids has the shape {tuple(set_ids.shape)}, and values {tuple(values.shape)}: give the set of each value."
        )
    if not center and (leave_one_out or not scale):
        raise ValueError(
            f"center=False, scale={scale}, leave_one_out={leave_one_out}: set center=True for leave_one_out, and center or "
            "scale for anything to happen."
        )
    ids = set_ids.flatten().unique(return_inverse=True)[1]  # (N K,) from 0 on
    order, sizes = ids.argsort(stable=True), ids.bincount()
    ids = ids[order]
    place = torch.arange(len(ids), device=ids.device) - (sizes.cumsum(0) - sizes)[ids]  # of a turn in its set
    sets = values.new_full((len(sizes), int(place.max()) + 1 if len(ids) else 1), torch.nan)  # a row each, NaN to fill
    sets[ids, place] = values.flatten()[order]
    standardized = torch.empty_like(values).flatten()
    standardized[order] = _standardize(sets, 1, eps, center, scale, leave_one_out)[ids, place]
    return standardized.view_as(values)


def normalize_turn_groups(gains: Tensor, num_generations: int, eps: float = 1e-6) -> Tensor:
    """
    Normalise gains within (prompt, turn index), `(g - μ) / (σ + ε)` with the population deviation (equation 3).

    Args:
        gains (`Tensor`, shape `(N, K)`):
            Gains, NaN where absent.
        num_generations (`int`):
            Completions per prompt; `N` is a multiple of it.
        eps (`float`):
            Added to the deviation, in the unit of the gains.

    Returns:
        `Tensor`, shape `(N, K)`: normalised gains. NaN stays NaN; a turn group of one, or of equal gains, gives 0.

    Raises:
        ValueError: If `N` is not a multiple of `num_generations`.

    Example:
        >>> normalize_turn_groups(torch.tensor([[1.0, 5.0], [3.0, float("nan")]]), num_generations=2)
        tensor([[-1.0000,  0.0000],
                [ 1.0000,     nan]])
    """
    return _standardize(_grouped(gains, num_generations), dim=1, eps=eps).view_as(gains)


def normalize_groups(gains: Tensor, num_generations: int, eps: float = 1e-6) -> Tensor:
    """
    Normalise gains over all turns of a prompt's completions pooled together, as IGPO does (arXiv 2510.14967).

    Takes and returns what [`normalize_turn_groups`] does; the group is the prompt instead of (prompt, turn index).
    """
    return _standardize(_grouped(gains, num_generations).flatten(1), dim=1, eps=eps).view_as(gains)


def accumulate(normalized: Tensor, gamma: float = 1.0, rescale: bool = True) -> Tensor:
    """
    Discounted sum of the gains to come, `D_k = Σ_{j≥k} γ^(j-k) ĝ_j / √m_k` (equation 4).

    `m_k` counts the gains in the sum. It is `n - k` where every tool turn has a gain; a turn that could not be scored
    adds neither to the sum nor to the count.

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
    turn = torch.arange(normalized.size(1), device=normalized.device)
    distance = turn.unsqueeze(1) - turn  # (K, K) from turn k (column) to turn j (row)
    discount = torch.where(distance >= 0, gamma ** distance.clamp(min=0).to(normalized.dtype), 0.0)
    sums = normalized.nan_to_num() @ discount  # (N, K)
    if rescale:
        terms = present.flip(1).cumsum(1).flip(1).clamp(min=1)  # (N, K) gains from turn k on
        sums = sums / terms.to(sums.dtype).sqrt()
    return sums.where(present, torch.nan)


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


def _grouped(gains: Tensor, num_generations: int) -> Tensor:
    if gains.size(0) % num_generations:
        raise ValueError(
            f"gains has {gains.size(0)} rows, not a multiple of num_generations={num_generations}: pass whole "
            "groups, the completions of a prompt in consecutive rows."
        )
    return gains.unflatten(0, (-1, num_generations))  # (N / G, G, K)


def _standardize(
    values: Tensor, dim: int, eps: float, center: bool = True, scale: bool = True, leave_one_out: bool = False
) -> Tensor:
    """[`standardize`] where sets are slices: a sum in another order than that of a dimension would have other last bits."""
    present = ~values.isnan()
    count = present.sum(dim, keepdim=True).clamp(min=1)
    mean = values.nan_to_num().sum(dim, keepdim=True) / count
    deviation = (values - mean).nan_to_num()
    std = (deviation.square().sum(dim, keepdim=True) / count).sqrt()
    compared = deviation if center else values.nan_to_num()
    if leave_one_out:
        compared = compared * count / (count - 1).clamp(min=1)
    if scale:
        compared = compared / (std + eps)
    # Equal values can differ from their own mean by rounding, which a division by ε would blow up
    lowest = values.masked_fill(~present, torch.inf).amin(dim, keepdim=True)
    highest = values.masked_fill(~present, -torch.inf).amax(dim, keepdim=True)
    return torch.where(lowest == highest, 0.0, compared).where(present, torch.nan)
