"""Attention over a [`~belief.packing.TokenTree`], without a mask of its length squared.

Two ways, one number: `"flex"` hands torch's flex attention the inequality of the tree and which blocks of it hold
anything; `"blocks"` runs torch's scaled dot-product attention on one block of queries after the other, each with the keys
that it sees, and a mask for blocks that are no plain chain of tokens.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PretrainedConfig

from ..replaced import replaced
from .packing import Block, Span, TokenTree, blocks

BLOCK = 128
"""Tokens of a block of flex attention."""

_blocks: ContextVar[list[tuple[Block, Tensor | None]]] = ContextVar("blocks")


@contextmanager
def attention_over(tree: TokenTree, config: PretrainedConfig, kind: str, device: torch.device):
    """
    Make a model attend over a tree, whatever its attention implementation.

    Args:
        tree ([`~belief.packing.TokenTree`]): What the row of the forward holds; for `"flex"` it is padded to a multiple of
            [`BLOCK`].
        config (`PretrainedConfig`): Of the model's text part.
        kind (`str`): `"flex"` or `"blocks"`.
        device (`torch.device`): Where the model is.

    Yields:
        The `attention_mask` that the forward is to be given.
    """
    if kind == "flex":
        with replaced(config, _attn_implementation_internal="flex_attention"):
            yield tree_block_mask(torch.tensor(tree.ends, device=device))
        return
    ends = torch.tensor(tree.ends, device=device)
    token = _blocks.set([(block, _mask(block, ends)) for block in blocks(tree)])
    try:
        with replaced(config, _attn_implementation_internal=_NAME):
            yield None
    finally:
        _blocks.reset(token)


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


def _mask(block: Block, ends: Tensor) -> Tensor | None:
    """`(queries, keys)` of a block, True where a query sees a key; `None` where a causal kernel serves."""
    num_before = sum(stop - start for start, stop in block.before)
    # A causal kernel skips half of the scores, a mask none: up to the middle it is less to attend from earlier tokens anew
    if block.is_chain and num_before <= block.stop - block.start:
        return None
    spans = [*block.before, (block.start, block.stop)]
    keys = torch.cat([torch.arange(start, stop, device=ends.device) for start, stop in spans])
    queries = torch.arange(block.start, block.stop, device=ends.device).unsqueeze(1)
    return (keys <= queries) & (queries < ends[keys])


def _attend_by_block(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """An attention function of transformers: `(1, H, N, D)` heads to `(1, N, H, D)` outputs."""
    outputs = [_attend(block, mask, query, key, value, scaling) for block, mask in _blocks.get()]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    block: Block, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    repeats = query.size(1) // key.size(1)
    spans = [*block.before, (block.start, block.stop)]
    keys, values = (_gather(states, spans).repeat_interleave(repeats, dim=1) for states in (key, value))
    if mask is None:
        outputs = F.scaled_dot_product_attention(_gather(query, spans), keys, values, is_causal=True, scale=scaling)
        return outputs[:, :, block.start - block.stop :]
    queries = query[:, :, block.start : block.stop]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)


def _gather(states: Tensor, spans: list[Span]) -> Tensor:
    pieces = [states[:, :, start:stop] for start, stop in spans]
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]


_NAME = "a2tgpo_blocks"
AttentionInterface.register(_NAME, _attend_by_block)
