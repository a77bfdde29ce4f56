"""Belief in the true answer (equation 1): where to probe a completion, and what to run the model over for it.

A *probe* is the answer, filled into the answer template, appended to a context: the prompt, or the prompt and the
completion up to the end of an observation. The belief at that context is the mean log-probability of the answer's
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


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
    The answer that is teacher-forced: the text, or the first of its aliases that is not empty.

    Args:
        value (`str` or list of `str`, *optional*): A cell of the answer column.
        where (`str`): What to call the cell in an error.

    Returns:
        `str`, or `None` if there is no answer but empty ones.

    Raises:
        ValueError: If the cell is neither text nor a list of texts.
    """
    aliases = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(aliases, (list, tuple)) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(
            f"{where} must be text or a list of aliases, got {value!r} ({type(value).__name__}); an alias is a text."
        )
    return next((alias for alias in aliases if alias.strip()), None)


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
    batch: dict[str, Tensor], ends: Tensor, probes: Sequence[Probe | None], max_length: int
) -> list[ProbedRow]:
    """
    What to score for a batch.

    Args:
        batch (`dict[str, Tensor]`): TRL's `prompt_ids`, `prompt_mask`, `completion_ids` and `completion_mask`, each
            `(B, ·)`.
        ends (`Tensor`, shape `(B, K)`): Where observations end, see [`~a2tgpo_trl.functional.observation_ends`].
        probes (`Sequence[Probe | None]`, length `B`): The probe of each row.
        max_length (`int`): Context length of the model; a probe that ends past it is left out.

    Returns:
        `list[ProbedRow]`, length `B`, each with `K + 1` ends.
    """
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    columns = [batch[name].tolist() for name in names] + [ends.tolist()]
    rows = []
    for prompt, prompt_mask, completion, completion_mask, row_ends, probe in zip(*columns, probes, strict=True):
        context = _kept(prompt, prompt_mask)
        lengths = [len(context), *(len(context) + end if end >= 0 else None for end in row_ends)]
        room = max_length - (len(probe.ids) if probe else 0)
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


@dataclass(frozen=True)
class BeliefPlan:
    """
    What to score for a batch of `B` completions.

    Attributes:
        rows (`list[ProbedRow]`, length `B`): Each with `K + 1` ends, every distinct context in one row only.
        keys (`Tensor`, shape `(B, K + 1)`): By which [`shared_beliefs`] tells equal contexts.
        first_columns (`list[int]`, length `B`): Padding to the left of each prompt.
    """

    rows: list[ProbedRow]
    keys: Tensor
    first_columns: list[int]


@dataclass(frozen=True)
class Query:
    """
    What to run the model over for one belief.

    Attributes:
        row (`int`), end (`int`): Which belief: that of a row, at the context with this index.
        context_length (`int`): Tokens of the context.
        ids (`list[int]`): The context and the probe, up to the last token that predicts one of the answer.
        predictors (`list[int]`): Places in `ids` that predict a token of the answer.
        labels (`list[int]`): These tokens.
    """

    row: int
    end: int
    context_length: int
    ids: list[int]
    predictors: list[int]
    labels: list[int]


def queries(rows: Sequence[ProbedRow]) -> list[Query]:
    """One query for each context that is to be probed; none for a probe without a token of the answer."""
    found = []
    for i, row in enumerate(rows):
        if row.probe is None or not any(row.probe.scored):
            continue
        scored = [offset for offset, on in enumerate(row.probe.scored) if on]
        labels = [row.probe.ids[offset] for offset in scored]
        for k, end in enumerate(row.ends):
            if end is not None:
                ids = row.context[:end] + row.probe.ids[: scored[-1]]
                found.append(Query(i, k, end, ids, [end - 1 + offset for offset in scored], labels))
    return found


def packed_length(row: ProbedRow) -> int:
    """Tokens of a completion with all of its probes, none of which another row has."""
    num_probes = sum(end is not None for end in row.ends)
    return len(row.context) + (num_probes * len(row.probe.ids) if row.probe else 0)


def mean_logps(logps: Tensor, owner: Tensor, num_owners: int) -> Tensor:
    """
    Belief of each owner: the mean of its log-probabilities.

    Args:
        logps (`Tensor`, shape `(M,)`): Log-probabilities of tokens, in nats.
        owner (`Tensor`, shape `(M,)`, long): Whose token each is.
        num_owners (`int`): How many owners there are.

    Returns:
        `Tensor`, shape `(num_owners,)`, in nats per answer token; NaN without tokens, or where the answer has
        probability 0, which says nothing either.
    """
    empty = logps.new_zeros(num_owners)
    means = empty.scatter_add(0, owner, logps) / empty.scatter_add(0, owner, torch.ones_like(logps))
    return means.where(means.isfinite(), torch.nan)
