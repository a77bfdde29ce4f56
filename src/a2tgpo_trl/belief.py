"""Belief in the true answer (equation 1): where to probe a completion, and how to score all probes at once.

A *probe* is the answer, filled into the answer template, appended to a context: the prompt, or the prompt and the
completion up to the end of an observation. The belief at that context is the mean log-probability of the answer's
tokens.

[`packed_beliefs`] lays a completion and all of its probes in one sequence

    prompt | completion | probe_0 | probe_1 | … | probe_n

where each probe sees its own context and itself only, and its positions go on from the end of that context.
[`prefix_beliefs`] scores one context after the other, for models whose attention cannot take such a mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Score = Callable[..., Tensor]
"""`score(input_ids, attention_mask, position_ids, shift_labels)` → log-probabilities of the labels, `(B, L)`."""


@dataclass(frozen=True)
class Probe:
    """An answer filled into the template: its token ids, and which of them overlap the answer's characters."""

    ids: list[int]
    scored: list[bool]


@dataclass(frozen=True)
class ProbedRow:
    """
    A completion to probe.

    Attributes:
        context (`list[int]`): Prompt and completion ids, without padding.
        ends (`list[int | None]`): Length of each context to probe, `ends[0]` the prompt's; `None` where there is none.
        probe (`Probe`, *optional*): What to append. Without it the row has no beliefs.
    """

    context: list[int]
    ends: list[int | None]
    probe: Probe | None

    def padded_to(self, num_turns: int) -> "ProbedRow":
        """The same row with `num_turns + 1` ends."""
        return replace(self, ends=self.ends + [None] * (num_turns + 1 - len(self.ends)))


def scored_answer(value: str | Sequence[str] | None, where: str) -> str | None:
    """
    The answer that is teacher-forced: the text, or the first of its aliases.

    Args:
        value (`str` or list of `str`, *optional*): A cell of the answer column.
        where (`str`): What to call the cell in an error.

    Returns:
        `str`, or `None` if the answer is empty.

    Raises:
        ValueError: If the cell is neither text nor a list of texts.
    """
    alias = value[0] if isinstance(value, (list, tuple)) and value else value
    if alias is not None and not isinstance(alias, (str, list, tuple)):
        raise ValueError(f"{where} must be text or a list of aliases, got {value!r} ({type(value).__name__}).")
    return alias if isinstance(alias, str) and alias.strip() else None


def make_probe(tokenizer: PreTrainedTokenizerBase, template: str, answer: str) -> Probe:
    """
    Fill the answer into the template and tokenise it on its own, without special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer, which knows its tokens' character offsets.
        template (`str`): Text with one `{answer}`.
        answer (`str`): The true answer, not empty.

    Returns:
        [`Probe`]: the ids; scored are exactly the tokens that overlap the answer's characters.
    """
    start = template.index("{answer}")
    end = start + len(answer)
    text = template[:start] + answer + template[start + len("{answer}") :]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    scored, previous_stop = [], 0
    for first, stop in encoding["offset_mapping"]:
        # Tokenizers may trim white space from a token's offsets: it then lies between the previous token and this one
        first = min(first, previous_stop)
        scored.append(first < end and stop > start)
        previous_stop = max(stop, previous_stop)
    return Probe(list(encoding["input_ids"]), scored)


def probed_rows(
    batch: dict[str, Tensor], ends: Tensor, probes: Sequence[Probe | None], max_length: int | None
) -> list[ProbedRow]:
    """
    What to score for a batch.

    Args:
        batch (`dict[str, Tensor]`): TRL's `prompt_ids`, `prompt_mask`, `completion_ids` and `completion_mask`, each
            `(B, ·)`.
        ends (`Tensor`, shape `(B, K)`): Where observations end, see [`~a2tgpo_trl.functional.observation_ends`].
        probes (`Sequence[Probe | None]`, length `B`): The probe of each row.
        max_length (`int`, *optional*): Context length of the model; a probe that ends past it is left out.

    Returns:
        `list[ProbedRow]`, length `B`, each with `K + 1` ends.
    """
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    columns = [batch[name].tolist() for name in names] + [ends.tolist()]
    rows = []
    for prompt, prompt_mask, completion, completion_mask, row_ends, probe in zip(*columns, probes, strict=True):
        context = _kept(prompt, prompt_mask)
        lengths = [len(context), *(len(context) + end if end >= 0 else None for end in row_ends)]
        room = None if max_length is None or probe is None else max_length - len(probe.ids)
        if room is not None:
            lengths = [None if length is not None and length > room else length for length in lengths]
        rows.append(ProbedRow(context + _kept(completion, completion_mask), lengths, probe))
    return rows


def _kept(ids: list[int], mask: list[int]) -> list[int]:
    return [token for token, keep in zip(ids, mask, strict=True) if keep]


def share_contexts(rows: Sequence[ProbedRow]) -> tuple[list[ProbedRow], list[list[int]]]:
    """
    Leave one probe of each context, however many rows begin with it.

    The prompt of a group is probed once, and so are first turns that are the same word for word. That saves probes, and
    more: rows that wrote the same differ in their beliefs by rounding alone, and normalisation would turn that rounding
    into credit.

    Args:
        rows (`Sequence[ProbedRow]`, length `B`): All with `K + 1` ends.

    Returns:
        `tuple[list[ProbedRow], list[list[int]]]`: the rows without the ends that need no probe, and a key for each of their `(B, K + 1)`
        contexts, by which [`shared_beliefs`] tells equal ones; -1 where there is no context.
    """
    keys, seen, unique = [], set(), []
    for row in rows:
        row_keys = [_context_key(row, end) for end in row.ends]
        ends = []
        for end, key in zip(row.ends, row_keys, strict=True):
            ends.append(None if key in seen or key == -1 else end)
            seen.add(key)
        keys.append(row_keys)
        unique.append(replace(row, ends=ends))
    return unique, keys


def _context_key(row: ProbedRow, end: int | None) -> int:
    if end is None or row.probe is None:
        return -1
    return hash((tuple(row.context[:end]), tuple(row.probe.ids)))  # of integers, and so the same on every process


def shared_beliefs(beliefs: Tensor, keys: Tensor) -> Tensor:
    """
    Give equal contexts the belief of the first of them.

    Args:
        beliefs (`Tensor`, shape `(N, K + 1)`): Beliefs, NaN where the context was scored in another row.
        keys (`Tensor`, shape `(N, K + 1)`, long): What [`share_contexts`] returned.

    Returns:
        `Tensor`, shape `(N, K + 1)`.
    """
    _, context = keys.flatten().unique(return_inverse=True)
    index = torch.arange(context.numel(), device=context.device)
    first = torch.full_like(index, context.numel()).scatter_reduce(0, context, index, reduce="amin")
    return beliefs.flatten()[first[context]].view_as(beliefs)


def packed_length(row: ProbedRow) -> int:
    """Tokens of the packed sequence of a row."""
    num_probes = sum(end is not None for end in row.ends)
    return len(row.context) + (num_probes * len(row.probe.ids) if row.probe else 0)


def packed_beliefs(score: Score, rows: Sequence[ProbedRow], dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """
    Beliefs of a micro-batch in one forward.

    Args:
        score (`Callable`): Runs the model, see [`Score`].
        rows (`Sequence[ProbedRow]`, length `B`): Completions, all with `K + 1` ends.
        dtype (`torch.dtype`, *optional*): Of the additive mask that eager attention takes; a boolean mask without it.
        device (`torch.device`): Where the model is.

    Returns:
        `Tensor`, shape `(B, K + 1)`: mean log-probability of the answer's tokens, in nats; NaN where there is no
        context or no probe.
    """
    layouts = [_lay_out(row) for row in rows]
    batch = _pad(layouts, device)
    mask = _block_mask(batch["segment"], batch["limit"], batch["index"])  # (B, L, L)
    if dtype is not None:
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
    return _mean_by_owner(score, batch, mask.unsqueeze(1), num_owners=len(rows[0].ends))


def prefix_beliefs(score: Score, rows: Sequence[ProbedRow], device: torch.device) -> Tensor:
    """
    Beliefs of a micro-batch in one forward per context, `K + 1` in all.

    Takes and returns what [`packed_beliefs`] does. A row without the context of a forward takes part with one
    token, so that the number of forwards depends on `K` alone.
    """
    columns = []
    for k in range(len(rows[0].ends)):
        prefixes = []
        for row in rows:
            end = row.ends[k]
            prefixes.append(ProbedRow(row.context[: end or 1], [end], row.probe))
        batch = _pad([_lay_out(prefix) for prefix in prefixes], device)
        columns.append(_mean_by_owner(score, batch, (batch["segment"] >= 0).long(), num_owners=1))
    return torch.cat(columns, dim=1)


def _lay_out(row: ProbedRow) -> dict[str, list[int]]:
    """One sequence of a context and its probes, token by token; see `_pad` for the meaning of each list."""
    length = len(row.context)
    ids, position, limit = list(row.context), list(range(length)), list(range(1, length + 1))
    segment, labels, owner = [0] * length, [-100] * length, [-1] * length
    for k, end in enumerate(row.ends):
        if end is None or row.probe is None:
            continue
        predictor = end - 1  # the first probe token is predicted at the end of its context, which is no other probe's
        for offset, (token, scored) in enumerate(zip(row.probe.ids, row.probe.scored, strict=True)):
            if scored:
                labels[predictor], owner[predictor] = token, k
            predictor = len(ids)
            ids.append(token)
            position.append(end + offset)
            limit.append(end)
            segment.append(k + 1)
            labels.append(-100)
            owner.append(-1)
    return {"ids": ids, "position": position, "limit": limit, "segment": segment, "labels": labels, "owner": owner}


_PADDING = {"ids": 0, "position": 0, "limit": 0, "segment": -1, "labels": -100, "owner": -1}


def _pad(layouts: list[dict[str, list[int]]], device: torch.device) -> dict[str, Tensor]:
    """
    Right-padded `(B, L)` tensors: `ids`; `position` ids; `limit`, the number of context tokens a token sees;
    `segment`, 0 for the context, k + 1 for probe k, -1 for padding; `labels`, what the token predicts, -100 where it
    is not scored; `owner`, the context whose belief that is; and `index`, the place in the sequence.
    """
    length = max(len(layout["ids"]) for layout in layouts)
    batch = {
        name: torch.tensor([layout[name] + [fill] * (length - len(layout[name])) for layout in layouts], device=device)
        for name, fill in _PADDING.items()
    }
    return {**batch, "index": torch.arange(length, device=device).expand(len(layouts), length)}


def _block_mask(segment: Tensor, limit: Tensor, index: Tensor) -> Tensor:
    """`(B, L, L)`, True where the query (dim 1) may attend to the key (dim 2)."""
    in_context = (segment == 0).unsqueeze(1) & (index.unsqueeze(1) < limit.unsqueeze(2))
    in_segment = (segment.unsqueeze(1) == segment.unsqueeze(2)) & (index.unsqueeze(1) <= index.unsqueeze(2))
    is_key = (segment >= 0).unsqueeze(1)
    # Padding attends to itself: a query that attends to nothing is NaN, and spreads
    itself = index.unsqueeze(1) == index.unsqueeze(2)
    return (is_key & (in_context | in_segment)) | itself


def _mean_by_owner(score: Score, batch: dict[str, Tensor], attention_mask: Tensor, num_owners: int) -> Tensor:
    logps = score(
        input_ids=batch["ids"],
        attention_mask=attention_mask,
        position_ids=batch["position"],
        shift_labels=batch["labels"],
    )  # (B, L)
    scored = batch["owner"] >= 0
    slot = batch["owner"].clamp(min=0)
    empty = logps.new_zeros(logps.size(0), num_owners)
    sums = empty.scatter_add(1, slot, logps.where(scored, 0.0))
    counts = empty.scatter_add(1, slot, scored.to(logps.dtype))
    means = sums / counts  # 0 / 0 is NaN: no context, no belief
    return means.where(means.isfinite(), torch.nan)  # an answer of probability 0 says nothing either
