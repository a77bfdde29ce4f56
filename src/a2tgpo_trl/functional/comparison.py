"""Comparison sets: which turns are compared with each other, and how.

A turn without a value (NaN) is a member of no set.
"""

import torch
from torch import Tensor

COMPARISONS = ("prompt", "turn", "state", "origin", "batch")
"""What [`comparison_sets`] can be asked for."""


def comparison_sets(within: str, num_generations: int, like: Tensor, states: Tensor | None = None) -> Tensor:
    """
    Number the comparison sets of turns. Turns of different prompts meet in `"batch"` only.

    Args:
        within (`str`):
            `"prompt"`: all turns of the prompt's completions. `"turn"`: those of the same turn index, the turn group.
            `"state"`: those that set out from the same state, at any turn index. `"origin"`: those that set out from the same
            state at the same turn index, so that no completion meets itself. `"batch"`: all turns.
        num_generations (`int`):
            Completions per prompt, in consecutive rows.
        like (`Tensor`, shape `(N, K)`):
            The values that are to be compared.
        states (`Tensor`, shape `(N, K)`, long, *optional*):
            Any number for the state before each turn. Needed by `"state"` and `"origin"`.

    Returns:
        `Tensor`, shape `(N, K)`, long: turns of one set have one number.

    Raises:
        ValueError: If `within` is none of them, or needs states that are not given.

    Example:
        >>> states = torch.tensor([[5, 9], [5, 5]])
        >>> comparison_sets("state", 2, torch.zeros(2, 2), states)
        tensor([[0, 1],
                [0, 0]])
        >>> comparison_sets("origin", 2, torch.zeros(2, 2), states)
        tensor([[0, 3],
                [0, 2]])
    """
    if within not in COMPARISONS:
        raise ValueError(f"within must be one of {', '.join(map(repr, COMPARISONS))}, got {within!r}.")
    if within in ("state", "origin") and states is None:
        raise ValueError(f"within={within!r} compares turns by the states they set out from: give states.")
    prompt = torch.arange(like.size(0), device=like.device).unsqueeze(1) // num_generations
    turn = torch.arange(like.size(1), device=like.device)
    parts = [] if within == "batch" else [prompt]
    if within in ("turn", "origin"):
        parts.append(turn)
    if within in ("state", "origin"):
        parts.append(states.unique(return_inverse=True)[1])  # from 0 on: hashes would overflow
    ids = torch.zeros(like.shape, dtype=torch.long, device=like.device)
    for part in parts:
        ids = ids * (int(part.max()) + 1) + part
    return ids


def set_sizes(values: Tensor, set_ids: Tensor) -> Tensor:
    """
    Count the members of each turn's comparison set, the turn itself included.

    Args:
        values (`Tensor`, shape `(N, K)`):
            NaN where a turn is a member of none.
        set_ids (`Tensor`, shape `(N, K)`, long):
            As for [`standardize`].

    Returns:
        `Tensor`, shape `(N, K)`, of the type of `values`: NaN stays NaN.

    Example:
        >>> set_sizes(torch.tensor([[1.0, 5.0], [3.0, float("nan")]]), torch.tensor([[7, 8], [7, 7]]))
        tensor([[2., 1.],
                [2., nan]])
    """
    present = ~values.isnan()
    ids = set_ids.unique(return_inverse=True)[1]  # (N, K) from 0 on
    members = ids[present].bincount(minlength=ids.numel())
    return members[ids].to(values.dtype).where(present, torch.nan)


def standardize(
    values: Tensor,
    set_ids: Tensor,
    center: bool = True,
    scale: bool = True,
    leave_one_out: bool = False,
    eps: float = 1e-6,
    floor: float = 0.0,
) -> Tensor:
    """
    Compare each turn with those of its comparison set: `(x - μ) / (max(σ, floor) + ε)`, σ the population deviation.

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
        floor (`float`):
            What σ counts as where it is smaller, in the unit of the values: differences that are noise then stay small.

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
    standardized[order] = _standardize(sets, 1, eps, floor, center, scale, leave_one_out)[ids, place]
    return standardized.view_as(values)


def normalize_turn_groups(gains: Tensor, num_generations: int, eps: float = 1e-6, floor: float = 0.0) -> Tensor:
    """
    Normalise gains within (prompt, turn index), `(g - μ) / (σ + ε)` with the population deviation (equation 3).

    Args:
        gains (`Tensor`, shape `(N, K)`):
            Gains, NaN where absent.
        num_generations (`int`):
            Completions per prompt; `N` is a multiple of it.
        eps (`float`):
            Added to the deviation, in the unit of the gains.
        floor (`float`):
            What σ counts as where it is smaller, in the unit of the gains. The paper has none.

    Returns:
        `Tensor`, shape `(N, K)`: normalised gains. NaN stays NaN; a turn group of one, or of equal gains, gives 0.

    Raises:
        ValueError: If `N` is not a multiple of `num_generations`.

    Example:
        >>> normalize_turn_groups(torch.tensor([[1.0, 5.0], [3.0, float("nan")]]), num_generations=2)
        tensor([[-1.0000,  0.0000],
                [ 1.0000,     nan]])
    """
    return _standardize(_grouped(gains, num_generations), dim=1, eps=eps, floor=floor).view_as(gains)


def normalize_groups(gains: Tensor, num_generations: int, eps: float = 1e-6, floor: float = 0.0) -> Tensor:
    """
    Normalise gains over all turns of a prompt's completions pooled together, as IGPO does (arXiv 2510.14967).

    Takes and returns what [`normalize_turn_groups`] does; the group is the prompt instead of (prompt, turn index).
    """
    return _standardize(_grouped(gains, num_generations).flatten(1), dim=1, eps=eps, floor=floor).view_as(gains)


def _grouped(gains: Tensor, num_generations: int) -> Tensor:
    if gains.size(0) % num_generations:
        raise ValueError(
            f"gains has {gains.size(0)} rows, not a multiple of num_generations={num_generations}: pass whole "
            "groups, the completions of a prompt in consecutive rows."
        )
    return gains.unflatten(0, (-1, num_generations))  # (N / G, G, K)


def _standardize(
    values: Tensor,
    dim: int,
    eps: float,
    floor: float,
    center: bool = True,
    scale: bool = True,
    leave_one_out: bool = False,
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
        compared = compared / (std.clamp(min=floor) + eps)
    # Equal values can differ from their own mean by rounding, which a division by ε would blow up
    lowest = values.masked_fill(~present, torch.inf).amin(dim, keepdim=True)
    highest = values.masked_fill(~present, -torch.inf).amax(dim, keepdim=True)
    return torch.where(lowest == highest, 0.0, compared).where(present, torch.nan)
