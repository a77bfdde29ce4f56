"""Keys and values of each rollout's tokens, kept from turn to turn: the model reads its history once."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...integrations.architecture import why_no_custom_mask


def why_no_history(model: PreTrainedModel, config: GenerationConfig) -> str | None:
    """Why a model's keys and values cannot be kept and put together in other batches, or `None` if they can."""
    if reason := why_no_custom_mask(model):
        return reason
    if model.config.get_text_config() is not model.config:
        return f"{model.config.model_type} takes more than text, and keeps state of its own between calls"

    def option(name: str):  # as `generate` resolves it
        value = getattr(config, name)
        return getattr(model.generation_config, name) if value is None else value

    if option("use_cache") is False:
        return "generation is configured without a cache"
    if option("cache_implementation") not in (None, "dynamic"):
        return f"generation is configured with a cache of another kind ({option('cache_implementation')})"
    if (option("num_beams") or 1) > 1:
        return "beam search keeps a cache of its own"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        return f"{model.config.model_type} has layers whose cache is not one of keys and values of all tokens"
    return None


@dataclass
class _History:
    """
    Tokens that the model has read, and for each layer their keys and values, `(heads, tokens, dim)`; `None` once they
    are in a batch.
    """

    ids: list[int]
    layers: list[tuple[Tensor, Tensor] | None]

    def length_in(self, context: list[int]) -> int:
        """How much of a context was read; its last token is always to be read, for the model to go on from."""
        if self.ids == context[: len(self.ids)] and len(self.ids) < len(context):
            return len(self.ids)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, context[:-1], strict=False)))


@dataclass
class _Generation:
    """What a call of `generate` has left behind."""

    cache: DynamicCache
    attention_mask: Tensor  # (B, T), of what was fed
    rows: Sequence[Hashable]
    contexts: list[list[int]]
    num_reused: int  # tokens of the contexts that were not fed again


class HistoryCache:
    """
    Feeds `generate` only those tokens of a context that the model has not read yet.

    Rows are laid out as `padding | read before | padding | to be read`, so that histories and observations of any length
    share a batch. The model has to find positions in `position_ids` alone, see [`why_no_history`].

    Args:
        model (`nn.Module`): The model that generates.
        share_prompts (`bool`): Whether a context that several new rollouts have in common is read only once. This is a
            forward of its own: not for a model whose forwards are collective.

    Attributes:
        tokens_fed (`int`): Tokens that the model read since [`clear`], its own among them, padding not.
    """

    def __init__(self, model: nn.Module, share_prompts: bool = True):
        self.model = model
        self.share_prompts = share_prompts
        self.clear()

    def clear(self) -> None:
        """Forget everything, as when weights change."""
        self._histories: dict[Hashable, _History] = {}
        self._last: _Generation | None = None
        self.tokens_fed = 0

    def drop(self, rows: Iterable[Hashable]) -> None:
        """Forget rollouts that are over."""
        for row in rows:
            self._histories.pop(row, None)

    def fork(self, source: Hashable, row: Hashable, length: int) -> None:
        """
        Let a rollout go on from what another one has read; nothing if nothing is kept of that.

        Args:
            source, row (`Hashable`): The rollout that has read it, and the one that shall go on from it.
            length (`int`): Tokens that they have in common.
        """
        if (history := self._histories.get(source)) is not None:
            layers = [(keys[:, :length], values[:, :length]) for keys, values in history.layers]
            self._histories[row] = _History(history.ids[:length], layers)

    def generate(
        self,
        generate: Callable[..., Tensor],
        rows: Sequence[Hashable],
        contexts: list[list[int]],
        input_ids: Tensor,
        attention_mask: Tensor,
        **kwargs,
    ) -> Tensor:
        """
        As the model's `generate`, from what it has read already.

        Args:
            generate (`Callable`): The model's `generate`.
            rows (`Sequence[Hashable]`, length `B`): The rollout of each row; `None` if it will not go on.
            contexts (`list[list[int]]`): What each row is to go on from.
            input_ids, attention_mask (`Tensor`, shape `(B, T)`): The same, left-padded.
            **kwargs: For `generate`.

        Returns:
            `Tensor`, shape `(B, T + generated)`: `input_ids` and what was generated.
        """
        histories = [self._histories.pop(row, None) for row in rows]
        if self.share_prompts:
            self._read_shared(contexts, histories, input_ids.device)
        lengths = [0 if h is None else h.length_in(context) for h, context in zip(histories, contexts, strict=True)]
        ids, mask = _lay_out(contexts, lengths, input_ids.device)
        cache = self._stack(histories, lengths)
        output = generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **kwargs)
        self._last = _Generation(cache, mask, rows, contexts, sum(lengths))
        return torch.cat([input_ids, output[:, ids.size(1) :]], dim=1)

    def keep(self, turns: list[list[int]]) -> None:
        """
        Keep what the last call of `generate` read, and of what it wrote no more than these turns.

        A `generate` that leaves the cache it was given unfilled, such as a wrapper's or a mock's, leaves nothing to keep:
        its rollouts are read again.
        """
        last, self._last = self._last, None
        if last is None:
            return
        width, context_tokens = last.attention_mask.size(1), sum(map(len, last.contexts))
        num_read = last.cache.get_seq_length() - width  # the token written last was not read
        if num_read < 0:
            self.tokens_fed += context_tokens + sum(max(len(turn) - 1, 0) for turn in turns)
            return
        turns = [turn[:num_read] for turn in turns]
        self.tokens_fed += context_tokens - last.num_reused + sum(map(len, turns))
        kept = {}
        for i, (row, context, turn) in enumerate(zip(last.rows, last.contexts, turns, strict=True)):
            if row is not None:
                written = torch.arange(width, width + len(turn), device=last.attention_mask.device)
                kept[row] = i, context + turn, torch.cat([last.attention_mask[i].nonzero().squeeze(1), written])
        self._histories.update(zip(kept, _take(last.cache, list(kept.values())), strict=True))

    @torch.no_grad()
    def _read_shared(self, contexts: list[list[int]], histories: list[_History | None], device: torch.device) -> None:
        """Read what new rollouts have in common: each context once, but for its last token. Fills in `histories`."""
        new = [row for row, history in enumerate(histories) if history is None and len(contexts[row]) > 1]
        prompts = list(dict.fromkeys(tuple(contexts[row][:-1]) for row in new))
        if len(prompts) == len(new):
            return
        ids, mask = _lay_out([list(prompt) for prompt in prompts], [0] * len(prompts), device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        few_logits = {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}
        self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **few_logits,
        )
        self.tokens_fed += sum(map(len, prompts))
        if not cache.get_seq_length():
            return
        taken = [(i, list(prompt), mask[i].nonzero().squeeze(1)) for i, prompt in enumerate(prompts)]
        read = dict(zip(prompts, _take(cache, taken), strict=True))
        for row in new:
            histories[row] = read[tuple(contexts[row][:-1])]

    def _stack(self, histories: list[_History | None], lengths: list[int]) -> DynamicCache:
        """The cache of a batch, each row's `lengths` tokens at the right."""
        cache = DynamicCache(config=self.model.config)
        if not any(lengths):
            return cache
        known = {id(history): history for history in histories if history is not None}
        width = max(lengths)
        for number, layer in enumerate(cache.layers):
            some = next(iter(known.values())).layers[number]  # for heads, dimension, type and device
            stacked = [tensor.new_zeros(len(histories), tensor.size(0), width, tensor.size(2)) for tensor in some]
            for row, (history, length) in enumerate(zip(histories, lengths, strict=True)):
                if length:
                    for target, source in zip(stacked, history.layers[number], strict=True):
                        target[row, :, width - length :] = source[:, :length]
            layer.update(*stacked)
            for history in known.values():
                history.layers[number] = None  # as in _take
        return cache


def _take(cache: DynamicCache, rows: list[tuple[int, list[int], Tensor]]) -> list[_History]:
    """Histories out of a batch's cache, which is emptied: for each its row, its tokens and their places."""
    histories = [_History(ids, []) for _, ids, _ in rows]
    while cache.layers:
        layer = cache.layers.pop(0)  # given back after its copies, so that memory does not hold everything twice
        for (row, _, places), history in zip(rows, histories, strict=True):
            places = places.to(layer.keys.device)  # a model may be spread over several
            history.layers.append((layer.keys[row].index_select(1, places), layer.values[row].index_select(1, places)))
    return histories


def _lay_out(contexts: list[list[int]], lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """`padding | read before | padding | to be read`: ids and attention mask, each `(B, T)`."""
    read_width = max(lengths)
    width = read_width + max(len(context) - length for context, length in zip(contexts, lengths, strict=True))
    # Padding is hidden from the model, but not from logits processors: a token of the row tells them nothing new
    ids = torch.tensor([context[-1:] for context in contexts]).repeat(1, width)
    mask = torch.zeros_like(ids)
    for row, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
        for place, tokens in (
            (read_width - length, context[:length]),
            (width - len(context) + length, context[length:]),
        ):
            ids[row, place : place + len(tokens)] = torch.tensor(tokens)
            mask[row, place : place + len(tokens)] = 1
    return ids.to(device), mask.to(device)
