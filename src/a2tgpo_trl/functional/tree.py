"""Trees of turns: how many leaves lie below a node, and values that are backed up from the leaves."""

import torch
from torch import Tensor


def leaves_below(nodes: Tensor, num_generations: int) -> Tensor:
    """
    Count the completions that go through each turn.

    Args:
        nodes (`Tensor`, shape `(N, K)`, long):
            Numbers of the turns: equal ones in rows of a prompt are the same turn. -1 where there is no turn.
        num_generations (`int`):
            Completions per prompt, in consecutive rows.

    Returns:
        `Tensor`, shape `(N, K)`, long: at least 1 where there is a turn, 0 elsewhere.

    Example:
        >>> leaves_below(torch.tensor([[0, 1], [0, 2], [3, -1]]), num_generations=3)
        tensor([[2, 1],
                [2, 1],
                [1, 0]])
    """
    groups = nodes.unflatten(0, (-1, num_generations))  # (P, G, K)
    same = groups.unsqueeze(1) == groups.unsqueeze(2)  # (P, G, G, K)
    return same.sum(dim=2).flatten(0, 1).masked_fill(nodes < 0, 0)


def tree_values(nodes: Tensor, surprisals: Tensor, outcomes: Tensor, num_generations: int) -> Tensor:
    """
    Back the outcomes of leaves up their tree, `V(n) = Σ_c softmax_c(H_c) V(c)` over the children of a node (arXiv 2601.04767).

    A completion that ends at a node is a child of it with `H` 0. The value of a node with one child is that of the child, to
    the bit.

    Args:
        nodes (`Tensor`, shape `(N, K)`, long):
            Numbers of the turns: equal ones in rows of a prompt are the same turn, and so are those before them. -1 where there
            is no turn.
        surprisals (`Tensor`, shape `(N, K)`):
            `H`, the mean surprisal of each turn's tokens in nats; NaN counts as 0.
        outcomes (`Tensor`, shape `(N,)`):
            Of the completions; NaN counts for no node. A completion without turns does not count either.
        num_generations (`int`):
            Completions per prompt, in consecutive rows.

    Returns:
        `Tensor`, shape `(N, K + 1)`: the value of the root, then of each turn; NaN where there is none.

    Example:
        Two completions share their first turn, and their second turns have the same surprisal:

        >>> nodes = torch.tensor([[0, 1], [0, 2], [3, -1]])
        >>> tree_values(nodes, torch.zeros(3, 2), torch.tensor([1.0, 0.0, 0.0]), num_generations=3)
        tensor([[0.2500, 0.5000, 1.0000],
                [0.2500, 0.5000, 0.0000],
                [0.2500, 0.0000,    nan]])
    """
    has_turns = nodes[:, :1] >= 0
    nodes = torch.cat([torch.zeros_like(nodes[:, :1]).where(has_turns, -1), nodes], dim=1)  # the root first
    ends = -2 - torch.arange(len(nodes), device=nodes.device)  # a child of its own for each completion that ends
    child, child_value, surprisal = ends, outcomes, torch.zeros_like(outcomes)
    values = []
    for k in range(nodes.size(1) - 1, -1, -1):
        node, goes_on = nodes[:, k], child >= 0
        value = _backed_up(
            node,
            child.where(goes_on, ends),
            child_value.where(goes_on, outcomes),
            surprisal.where(goes_on, 0.0),
            num_generations,
        )
        values.append(value)
        child, child_value = node, value
        surprisal = surprisals[:, k - 1].nan_to_num() if k else surprisal
    return torch.stack(values[::-1], dim=1)


def _backed_up(node: Tensor, child: Tensor, child_value: Tensor, surprisal: Tensor, num_generations: int) -> Tensor:
    """The values of nodes of one depth, from their children, `(N,)`; each child counts once, in the first row that has it."""
    node, child, child_value, surprisal = (
        values.unflatten(0, (-1, num_generations)) for values in (node, child, child_value, surprisal)
    )  # (P, G)
    same_child = child.unsqueeze(1) == child.unsqueeze(2)  # (P, G, G)
    is_first = ~same_child.tril(diagonal=-1).any(dim=2)  # (P, G)
    counts = is_first & ~child_value.isnan()
    members = (node.unsqueeze(2) == node.unsqueeze(1)) & counts.unsqueeze(1) & (node >= 0).unsqueeze(2)  # (P, G, G)
    logits = surprisal.unsqueeze(1).expand(members.shape).masked_fill(~members, -torch.inf)
    shifted = logits - logits.amax(dim=2, keepdim=True).nan_to_num(neginf=0.0)
    weights = shifted.exp()  # one child: exactly 1
    total = (weights * child_value.nan_to_num().unsqueeze(1)).sum(dim=2)
    return (total / weights.sum(dim=2)).where(members.any(dim=2), torch.nan).flatten()
