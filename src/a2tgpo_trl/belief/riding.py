"""Beliefs on the keys and values of a forward that is made anyway: that of the old log-probabilities.

TRL's forward stays as it is, to the bit. Had its batch another form, the old log-probabilities would round in another way
than those of the loss; in half precision that moves the mean of a turn by as much as its clip range is wide.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from ..replaced import replaced
from .probes import BeliefPlan, Query, mean_logps, queries


class RidingModel:
    """
    A model that, whenever TRL runs it over completions, scores their probes on the keys and values that it computed.

    Args:
        model (`nn.Module`): The policy.
        plan ([`~belief.BeliefPlan`]): What to score, its rows in the order in which TRL will run them.
        config (`PretrainedConfig`): Of the model's text part.
        score (`Callable`): Runs the model, and returns the log-probabilities of `shift_labels`.

    Attributes:
        beliefs (`list[Tensor]`): Of each micro-batch so far, `(b, K + 1)`, as [`~belief.scoring.BeliefScorer.measure`] does.
    """

    def __init__(self, model: nn.Module, plan: BeliefPlan, config: PretrainedConfig, score: Callable[..., Tensor]):
        self.model = model
        self.plan = plan
        self.config = config
        self.score = score
        self.beliefs: list[Tensor] = []
        self._num_seen = 0

    def __call__(self, **inputs: Any) -> Any:
        """One micro-batch of TRL's."""
        cache = DynamicCache(config=self.config)
        outputs = self.model(**inputs, past_key_values=cache)
        size, width = inputs["input_ids"].shape
        rows = slice(self._num_seen, self._num_seen + size)
        self._num_seen += size
        num_ends = self.plan.keys.size(1)
        found, first_columns = queries(self.plan.rows[rows]), self.plan.first_columns[rows]
        batch = _lay_out(found, first_columns, num_ends, inputs["input_ids"].device)
        with replaced(self.config, _attn_implementation_internal="sdpa"):
            logps = self.score(
                self.model,
                input_ids=batch["ids"],
                position_ids=batch["position"],
                attention_mask=_mask(batch, width),
                past_key_values=cache,
                shift_labels=batch["labels"],
            )  # (b, P)
        scored = batch["owner"] >= 0
        self.beliefs.append(mean_logps(logps[scored], batch["owner"][scored], size * num_ends).view(size, num_ends))
        return outputs


_PADDING = {"ids": 0, "position": 0, "first": 0, "limit": 0, "query": -1, "labels": -100, "owner": -1}


def _lay_out(
    found: Sequence[Query], first_columns: Sequence[int], num_ends: int, device: torch.device
) -> dict[str, Tensor]:
    """
    `(b, P)` tensors: `ids`, each probe led by the last token of its context, which predicts its first; `position`;
    `first` and `limit`, the columns of the context that a token sees; `query`, which probe a token belongs to, -1 for
    padding; `labels`, what a token predicts, -100 where it is not scored; `owner`, the belief that this belongs to.
    """
    rows = [{name: [] for name in _PADDING} for _ in first_columns]
    for number, query in enumerate(found):
        row, first = rows[query.row], first_columns[query.row]
        start = query.context_length - 1
        fed = query.ids[start:]
        answer = dict(zip(query.predictors, query.labels, strict=True))
        places = range(start, start + len(fed))
        row["ids"] += fed
        row["position"] += [first + place for place in places]
        row["first"] += [first] * len(fed)
        row["limit"] += [first + start] * len(fed)
        row["query"] += [number] * len(fed)
        row["labels"] += [answer.get(place, -100) for place in places]
        row["owner"] += [query.row * num_ends + query.end if place in answer else -1 for place in places]
    width = max(1, *(len(row["ids"]) for row in rows))
    return {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows], device=device)
        for name, fill in _PADDING.items()
    }


def _mask(batch: dict[str, Tensor], width: int) -> Tensor:
    """`(b, 1, P, width + P)`, True where a probe's token (dim 2) sees a column of the context or of the probes (dim 3)."""
    column = torch.arange(width, device=batch["ids"].device)
    context = (column >= batch["first"].unsqueeze(2)) & (column < batch["limit"].unsqueeze(2))
    index = torch.arange(batch["ids"].size(1), device=column.device)
    own = (batch["query"].unsqueeze(2) == batch["query"].unsqueeze(1)) & (index.unsqueeze(1) >= index)
    return torch.cat([context, own], dim=2).unsqueeze(1)
