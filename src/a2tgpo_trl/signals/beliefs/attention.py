"""Attention over a [`~signals.beliefs.packing.TokenTree`], without a mask of its length squared.

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

from ...integrations.replaced import replaced
from .packing import Block, Span, TokenTree, blocks

BLOCK = 128
"""Tokens of a block of flex attention."""

_blocks: ContextVar[list[tuple[Block, Tensor | None]]] = ContextVar("blocks")


@contextmanager
def attention_over(tree: TokenTree, config: PretrainedConfig, kind: str, device: torch.device):
    """
    Make a model attend over a tree, whatever its attention implementation.

    Args:
        tree ([`~signals.beliefs.packing.TokenTree`]): What the row of the forward holds; for `"flex"` it is padded to a multiple of
            [`BLOCK`].
        config (`PretrainedConfig`): Of the model's text part.
        kind (`str`): `"flex"` or `"blocks"`.
        device (`torch.device`): Where the model is.

    Yields:
        The `attention_mask` that the forward is to be given.
    """
    if kind == "flex":
        with replaced(config, _attn_implementation_internal=_FLEX):
            yield tree_block_mask(torch.tensor(tree.ends, device=device))
        return
    ends = torch.tensor(tree.ends, device=device)
    token = _blocks.set([(block, _mask(block, ends)) for block in blocks(tree)])
    try:
        with replaced(config, _attn_implementation_internal=_BLOCKS):
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


class UnknownAttention(Exception):
    """A model asks its attention for more than queries, keys and values over a token tree."""


def _check(mask_is_ours: bool, options: dict) -> None:
    asked = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if options.get(name) is not None]
    if asked or not mask_is_ours:
        raise UnknownAttention(", ".join(asked) or "a mask of its own")


def _attend_by_block(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """An attention function of transformers: `(1, H, N, D)` heads to `(1, N, H, D)` outputs."""
    _check(attention_mask is None, kwargs)
    outputs = [_attend(block, mask, query, key, value, scaling) for block, mask in _blocks.get()]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend_by_flex(module, query, key, value, attention_mask, **kwargs):
    """The same by flex attention as transformers compiles it."""
    _check(isinstance(attention_mask, BlockMask), kwargs)
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings leave them in float32 under autocast
    return AttentionInterface()["flex_attention"](module, query, key, value, attention_mask, **kwargs)


def why_no_flex(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """
    Why flex attention cannot be used for the heads of a model, found out by using it, or `None` if it can.

    It is compiled for the first length as it is, and for all others at the second.
    """
    for num_blocks in (2, 3, 5):
        query, key, value = _random_heads(config, num_blocks * BLOCK, dtype, device)
        block = Block([], 0, num_blocks * BLOCK, is_chain=True)
        expected = _attend(block, None, query, key, value, None)
        ends = torch.full((num_blocks * BLOCK,), num_blocks * BLOCK, device=device)
        try:
            found, _ = _attend_by_flex(torch.nn.Module().eval(), query, key, value, tree_block_mask(ends), dropout=0.0)
        except Exception as error:  # whatever compilers, drivers and kernels raise
            return f"it fails with {type(error).__name__}"
        difference = (found.transpose(1, 2) - expected).abs().max().item()
        if difference > _ROUNDING:
            return f"it is off by {difference:.2g}"
    return None


_ROUNDING = 0.05
"""Of half precision, at most: outputs are means of standard normal numbers."""


def _random_heads(config: PretrainedConfig, length: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    num_heads = config.num_attention_heads
    num_key_value_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    heads = (num_heads, num_key_value_heads, num_key_value_heads)
    generator = torch.Generator().manual_seed(0)  # the run's own random state is left alone
    states = [torch.randn(1, number, length, head_size, generator=generator) for number in heads]
    return [state.to(device=device, dtype=dtype) for state in states]


def _attend(
    block: Block, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    """Outputs of a block's tokens, `(1, H, n, D)`, from the heads of the whole row, keys and values perhaps fewer of them."""
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


_BLOCKS, _FLEX = "a2tgpo_blocks", "a2tgpo_flex"
AttentionInterface.register(_BLOCKS, _attend_by_block)
AttentionInterface.register(_FLEX, _attend_by_flex)
