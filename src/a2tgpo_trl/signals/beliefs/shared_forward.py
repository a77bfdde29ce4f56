"""Beliefs on the keys and values of a forward that is made anyway: that of the old log-probabilities.

TRL's forward stays as it is, to the bit. Had its batch another form, the old log-probabilities would round in another way
than those of the loss; in half precision that moves the mean of a turn by as much as its clip range is wide.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ...integrations.replaced import replaced
from .head import predicting_at
from .packing import TokenTree
from .pictures import unmarked
from .probes import BeliefPlan, Query, mean_logps, queries


class SharedForward:
    """
    A model that, whenever TRL runs it over completions, scores their probes on the keys and values that it computed.

    Args:
        model (`nn.Module`): Who is asked.
        plan ([`~signals.beliefs.BeliefPlan`]): What to score, its rows in the order in which TRL will run them.
        base (`PreTrainedModel`): The model without its adapters and wrappers.
        score (`Callable`): Runs the model, and returns the log-probabilities of `shift_labels`.
        table (`Callable`): Of beliefs of queries, the queries, and how many rows and contexts there are, see
            [`~signals.beliefs.probes.belief_table`].
        skip_empty (`bool`): Whether nothing is run where a micro-batch has no probe. Where other processes may have one,
            all are to make the same forwards.

    Attributes:
        beliefs (`list[Tensor]`): Of each micro-batch so far, `(b, E)`, as [`~signals.beliefs.scoring.BeliefScorer.measure`] does.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: BeliefPlan,
        base: PreTrainedModel,
        score: Callable[..., Tensor],
        table: Callable[..., Tensor],
        skip_empty: bool,
    ):
        self.model = model
        self.plan = plan
        self.base = base
        self.score = score
        self.table = table
        self.skip_empty = skip_empty
        self.beliefs: list[Tensor] = []
        self._num_seen = 0

    def __call__(self, **inputs: Any) -> Any:
        """One micro-batch of TRL's."""
        size, width = inputs["input_ids"].shape
        rows = slice(self._num_seen, self._num_seen + size)
        self._num_seen += size
        device, shape = inputs["input_ids"].device, (size, self.plan.num_ends)
        found = queries(self.plan.rows[rows])
        if self.skip_empty and not found:
            self.beliefs.append(torch.full(shape, torch.nan, device=device))
            return self.model(**inputs)
        config = self.base.config.get_text_config()
        cache = DynamicCache(config=config)
        with _position_ids(self.base) as position_ids:
            outputs = self.model(**inputs, past_key_values=cache)
        probes = _lay_out(found, self.plan.first_columns[rows])
        tokens = {name: torch.tensor(values, device=device) for name, values in probes.tokens.items()}  # (b, P) each
        with (
            replaced(config, _attn_implementation_internal="sdpa"),
            predicting_at(self.base, probes.rows, probes.columns),
        ):
            logps = self.score(
                self.model,
                input_ids=tokens["ids"],
                position_ids=_positions(tokens, *position_ids),
                attention_mask=_mask(tokens, width),
                past_key_values=cache,
                shift_labels=torch.tensor([probes.labels], dtype=torch.long, device=device),
            )  # (1, M)
        owner = torch.tensor(probes.owners, dtype=torch.long, device=device)
        self.beliefs.append(self.table(mean_logps(logps[0], owner, len(found)), found, shape))
        return outputs


@dataclass
class _Probes:
    """
    The probes of `b` rows. Those of a context are a [`~signals.beliefs.packing.TokenTree`]: they begin with the last token of
    the context, which predicts their first, and aliases that begin alike share that too.

    Attributes:
        tokens (`dict`): Lists of `b` rows of `P` numbers: `ids`; `depth`, how many tokens come before it in its probe; `first` and
            `limit`, the columns of the context that a token sees; `end`, one past the last token of the probes that sees it.
        rows, columns (`list[int]`, length `M`): Tokens that predict one of an answer.
        labels (`list[int]`, length `M`): What they predict.
        owners (`list[int]`, length `M`): Number of the probe that it belongs to.
    """

    tokens: dict[str, list[list[int]]]
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)


_PADDING = {"ids": 0, "depth": 0, "first": 0, "limit": 0, "end": 2**62}
"""A padding token sees itself, for the mean of nothing is NaN, and the padding before it."""


def _lay_out(found: Sequence[Query], first_columns: Sequence[int]) -> _Probes:
    probes = _Probes({name: [[] for _ in first_columns] for name in _PADDING})
    contexts: dict[tuple[int, int], list[int]] = {}
    for number, query in enumerate(found):
        contexts.setdefault((query.row, query.end), []).append(number)
    for (row, _), numbers in contexts.items():
        _add_context(probes, {number: found[number] for number in numbers}, row, first_columns[row])
    width = max(1, *map(len, probes.tokens["ids"]))
    for name, fill in _PADDING.items():
        probes.tokens[name] = [row + [fill] * (width - len(row)) for row in probes.tokens[name]]
    return probes


def _add_context(probes: _Probes, found: dict[int, Query], row: int, first: int) -> None:
    """Add the probes of one context of a row, whose first token is in the column `first`."""
    query = next(iter(found.values()))
    start = query.context_length - 1
    if any(span.stop == query.context_length for span in query.spans):
        raise ValueError(
            "A prompt or observation ends with a picture, and the model is to read the last token of a context once more to go on "
            "from it, which a placeholder without its picture cannot stand for. Let the chat template write something after it."
        )
    tree = TokenTree()
    for number in sorted(found, key=lambda number: found[number].ids):
        tree.add(number, found[number].ids[start:])
    lists = {name: rows[row] for name, rows in probes.tokens.items()}
    shift, size = len(lists["ids"]), len(tree.ids)
    for number, branch in tree.branches.items():
        query = found[number]
        probes.rows += [row] * len(query.labels)
        probes.columns += [shift + branch.place(place - start) for place in query.predictors]
        probes.labels += query.labels
        probes.owners += [number] * len(query.labels)
    lists["ids"] += unmarked(tree.ids)
    lists["depth"] += tree.positions
    lists["first"] += [first] * size
    lists["limit"] += [first + start] * size
    lists["end"] += [shift + end for end in tree.ends]


@contextmanager
def _position_ids(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Yields a list, in which are then the positions that the model chose for its text part; nothing if it left that to it."""
    chosen = []

    def keep(decoder, args, options):
        if options.get("position_ids") is not None:
            chosen.append(options["position_ids"])

    handle = model.base_model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield chosen
    finally:
        handle.remove()


def _positions(tokens: dict[str, Tensor], context: Tensor | None = None) -> Tensor:
    """
    Of the probes' tokens, `(b, P)` or, with several dimensions of them, `(R, b, P)`.

    Args:
        tokens (`dict[str, Tensor]`): See [`_Probes`].
        context (`Tensor`, shape `(b, T)`, `(1, T)` or `(R, b, T)`, *optional*): Those of the columns, where they are other numbers.
    """
    column, depth = tokens["limit"], tokens["depth"]  # of the last token of the context, with which a probe begins
    if context is None:
        return column + depth
    column = column.expand(*context.shape[:-2], -1, -1)
    return context.expand(*column.shape[:-1], -1).gather(-1, column) + depth


def _mask(tokens: dict[str, Tensor], width: int) -> Tensor:
    """`(b, 1, P, width + P)`, True where a probe's token (dim 2) sees a column of the context or of the probes (dim 3)."""
    column = torch.arange(width, device=tokens["ids"].device)
    context = (column >= tokens["first"].unsqueeze(2)) & (column < tokens["limit"].unsqueeze(2))
    index = torch.arange(tokens["ids"].size(1), device=column.device)
    own = (index <= index.unsqueeze(1)) & (index.unsqueeze(1) < tokens["end"].unsqueeze(1))
    return torch.cat([context, own], dim=2).unsqueeze(1)
