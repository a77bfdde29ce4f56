"""Turns from masks, and values from turns to tokens."""

import torch
from torch import Tensor


def turn_ids(completion_mask: Tensor, tool_mask: Tensor | None = None) -> Tensor:
    """
    Number the turns of each completion: maximal runs of tokens that the model wrote.

    Args:
        completion_mask (`Tensor`, shape `(B, T)`):
            1 on completion tokens, 0 on padding.
        tool_mask (`Tensor`, shape `(B, T)`, *optional*):
            1 on model-written tokens, 0 on tool tokens; anything on padding. Without it every completion token counts
            as written by the model.

    Returns:
        `Tensor`, shape `(B, T)`, long: the index of the token's turn, counted from 0; -1 off-turn.

    Example:
        >>> turn_ids(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0, 1, 1]]))
        tensor([[ 0,  0, -1, -1,  1, -1]])
    """
    written = _written(completion_mask, tool_mask)  # (B, T)
    starts = written.clone()
    starts[:, 1:] &= ~written[:, :-1]
    return torch.where(written, starts.cumsum(dim=1) - 1, -1)


def observation_ends(completion_mask: Tensor, tool_mask: Tensor | None = None) -> Tensor:
    """
    Find where the observation after each turn ends: the length of the completion up to and including it.

    Args:
        completion_mask (`Tensor`, shape `(B, T)`):
            1 on completion tokens, 0 on the padding to their right.
        tool_mask (`Tensor`, shape `(B, T)`, *optional*):
            As for [`turn_ids`].

    Returns:
        `Tensor`, shape `(B, K)`, long: for tool turns the number of completion tokens up to the end of the observation
        that follows; -1 where the turn has no observation (the answer turn) or does not exist. `K` is the largest
        number of turns of a row, at least 1.

    Example:
        >>> observation_ends(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0, 1, 1]]))
        tensor([[ 4, -1]])
    """
    ids = turn_ids(completion_mask, tool_mask)  # (B, T)
    latest_turn = ids.cummax(dim=1).values  # (B, T) the turn that each observation token follows
    observed = completion_mask.bool() & (ids < 0)  # (B, T)
    return _last_places(latest_turn.where(observed, -1), _max_turns(ids))


def turn_starts(turn_ids: Tensor) -> Tensor:
    """
    Find where each turn's own text starts: the length of the completion before it.

    Args:
        turn_ids (`Tensor`, shape `(B, T)`, long):
            Turn of each token, -1 off-turn.

    Returns:
        `Tensor`, shape `(B, K)`, long: the number of completion tokens before the turn; -1 where there is none. `K` is the
        largest number of turns of a row, at least 1.

    Example:
        >>> turn_starts(torch.tensor([[0, 0, -1, -1, 1, -1], [0, -1, -1, -1, -1, -1]]))
        tensor([[ 0,  4],
                [ 0, -1]])
    """
    first = turn_ids.clone()
    first[:, 1:] = first[:, 1:].where(turn_ids[:, 1:] != turn_ids[:, :-1], -1)
    return (_last_places(first, _max_turns(turn_ids)) - 1).clamp(min=-1)


def turn_ends(turn_ids: Tensor) -> Tensor:
    """
    Find where each turn's own text ends: the length of the completion up to and including it.

    Args:
        turn_ids (`Tensor`, shape `(B, T)`, long):
            Turn of each token, -1 off-turn.

    Returns:
        `Tensor`, shape `(B, K)`, long: the number of completion tokens up to the end of the turn; -1 where there is none.
        `K` is the largest number of turns of a row, at least 1.

    Example:
        >>> turn_ends(torch.tensor([[0, 0, -1, -1, 1, -1], [0, -1, -1, -1, -1, -1]]))
        tensor([[ 2,  5],
                [ 1, -1]])
    """
    return _last_places(turn_ids, _max_turns(turn_ids))


def spread_turns(values: Tensor, turn_ids: Tensor, fill: float) -> Tensor:
    """
    Give each token the value of its turn.

    Args:
        values (`Tensor`, shape `(B, K)`):
            One value per turn.
        turn_ids (`Tensor`, shape `(B, T)`, long):
            Turn of each token, -1 off-turn; every index is below `K`.
        fill (`float`):
            Value of off-turn tokens.

    Returns:
        `Tensor`, shape `(B, T)`, of the type of `values`.

    Example:
        >>> spread_turns(torch.tensor([[0.5, 2.0]]), torch.tensor([[0, 0, -1, 1]]), fill=0.0)
        tensor([[0.5000, 0.5000, 0.0000, 2.0000]])
    """
    return values.gather(1, turn_ids.clamp(min=0)).masked_fill(turn_ids < 0, fill)


def _max_turns(turn_ids: Tensor) -> int:
    return max(int(turn_ids.max()) + 1, 1) if turn_ids.numel() else 1


def _last_places(owners: Tensor, num_owners: int) -> Tensor:
    """One past the last token of each owner, -1 where it has none, `(B, num_owners)`; tokens of the owner -1 are nobody's."""
    place = torch.arange(1, owners.size(1) + 1, device=owners.device).expand_as(owners)
    places = torch.full((owners.size(0), num_owners), -1, dtype=torch.long, device=owners.device)
    return places.scatter_reduce(
        1, owners.clamp(min=0), place.where(owners >= 0, -1), reduce="amax", include_self=True
    )


def _written(completion_mask: Tensor, tool_mask: Tensor | None) -> Tensor:
    mask = completion_mask.bool()
    return mask if tool_mask is None else mask & tool_mask.bool()
