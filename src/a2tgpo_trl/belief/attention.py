"""Attention over a [`~belief.packing.TokenTree`], without a mask of its length squared.

Two ways, one number: `"flex"` hands torch's flex attention the inequality of the tree and which blocks of it hold
anything; `"branches"` runs torch's scaled dot-product attention branch by branch, where no more than the causal mask of a
branch's own tokens is needed.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PretrainedConfig

from ..replaced import replaced
from .packing import Branch, TokenTree

BLOCK = 128
"""Tokens of a block of flex attention."""

_branches: ContextVar[list[Branch]] = ContextVar("branches")


@contextmanager
def attention_over(tree: TokenTree, config: PretrainedConfig, kind: str, device: torch.device):
    """
    Make a model attend over a tree, whatever its attention implementation.

    Args:
        tree ([`~belief.packing.TokenTree`]): What the row of the forward holds; for `"flex"` it is padded to a multiple of
            [`BLOCK`].
        config (`PretrainedConfig`): Of the model's text part.
        kind (`str`): `"flex"` or `"branches"`.
        device (`torch.device`): Where the model is.

    Yields:
        The `attention_mask` that the forward is to be given.
    """
    if kind == "flex":
        with replaced(config, _attn_implementation_internal="flex_attention"):
            yield tree_block_mask(torch.tensor(tree.ends, device=device))
        return
    token = _branches.set(list(tree.branches.values()))
    try:
        with replaced(config, _attn_implementation_internal=_NAME):
            yield None
    finally:
        _branches.reset(token)


def tree_block_mask(ends: Tensor) -> BlockMask:
    """
    Mask of a tree for flex attention.

    Args:
        ends (`Tensor`, shape `(N,)`, long): One past the last token that sees each; `N` is a multiple of [`BLOCK`].

    Returns:
        `BlockMask`: which blocks of queries and keys to compute, from `N / BLOCK` squared comparisons.
    """
    blocks = ends.view(-1, BLOCK)
    first = torch.arange(0, ends.numel(), BLOCK, device=ends.device)
    last = first + BLOCK - 1
    query_first, query_last = first.unsqueeze(1), last.unsqueeze(1)
    seen = (first <= query_last) & (blocks.amax(1) > query_first)
    whole = (last <= query_first) & (blocks.amin(1) > query_last)

    def sees(batch, head, query, key):
        return (key <= query) & (query < ends[key])

    return BlockMask.from_kv_blocks(*_listed(seen & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=sees)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], order.int()[None, None]


def _attend_by_branch(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """An attention function of transformers: `(1, H, N, D)` heads to `(1, N, H, D)` outputs."""
    outputs = [_attend(branch, query, key, value, scaling) for branch in _branches.get()]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(branch: Branch, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Outputs of the tokens that are the branch's own."""
    own = branch.length - branch.shared
    if own == 0:
        return query[:, :, :0]
    repeats = query.size(1) // key.size(1)
    keys, values = (_gather(states, branch.spans).repeat_interleave(repeats, dim=1) for states in (key, value))
    # A causal kernel skips half of the scores, a mask none: up to the middle it is less to compute the shared tokens anew
    if 2 * branch.shared < branch.length:
        queries = _gather(query, branch.spans)
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)[:, :, -own:]
    queries = query[:, :, slice(*branch.spans[-1])]
    mask = torch.ones(own, branch.length, dtype=torch.bool, device=query.device).tril(branch.shared)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)


def _gather(states: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    return torch.cat([states[:, :, start:stop] for start, stop in spans], dim=2)


_NAME = "a2tgpo_branches"
AttentionInterface.register(_NAME, _attend_by_branch)
