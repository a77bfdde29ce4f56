"""Belief in the true answer (equation 1): where to probe a completion, and what to run the model over for it.

A *probe* is the answer, filled into the answer template, appended to a context: the prompt, or the prompt and the
completion up to the end of an observation, or of a turn. The belief at that context is the mean log-probability of the
answer's tokens; where several aliases are probed, it is what [`join_aliases`] makes of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..texts import normalized
from .pictures import PictureSpan, ReadPicture, marked


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
        context (`list[int]`): Prompt and completion ids, without padding, marked where pictures stand.
        ends (`list[int | None]`): Length of each context to probe, `ends[0]` the prompt's; `None` where there is none.
        probes (`list[Probe]`): What to append to each, one for each alias of the answer. Without any the row has no beliefs.
        spans (`list[PictureSpan]`): Where pictures stand in the context.
    """

    context: list[int]
    ends: list[int | None]
    probes: list[Probe]
    spans: list[PictureSpan] = field(default_factory=list)

    def padded_to(self, num_ends: int) -> "ProbedRow":
        """The same row with so many ends."""
        return replace(self, ends=self.ends + [None] * (num_ends - len(self.ends)))

    def with_pictures(self, spans: list[PictureSpan]) -> "ProbedRow":
        """The same row with pictures in its context."""
        return replace(self, context=marked(self.context, spans), spans=spans)


def scored_answers(value: str | Sequence[str] | None, where: str) -> list[str]:
    """
    The answers that can be teacher-forced: the text, or its aliases that are not empty, each once.

    Args:
        value (`str` or list of `str`, *optional*): A cell of the answer column.
        where (`str`): What to call the cell in an error.

    Returns:
        `list[str]`: as they are written; of those that differ in case, forms of a character and white space alone, the first.

    Raises:
        ValueError: If the cell is neither text nor a list of texts.
    """
    aliases = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(aliases, (list, tuple)) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(
            f"{where} must be text or a list of aliases, got {value!r} ({type(value).__name__}); an alias is a text."
        )
    distinct: dict[str, str] = {}
    for alias in aliases:
        if alias.strip():
            distinct.setdefault(normalized(alias), alias)
    return list(distinct.values())


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
    batch: dict[str, Tensor], ends: Tensor, probes: Sequence[list[Probe]], max_length: int
) -> list[ProbedRow]:
    """
    What to score for a batch.

    Args:
        batch (`dict[str, Tensor]`): TRL's `prompt_ids`, `prompt_mask`, `completion_ids` and `completion_mask`, each
            `(B, ·)`.
        ends (`Tensor`, shape `(B, E)`): Lengths of the completion up to where contexts end, -1 where there is none; see
            [`~a2tgpo_trl.functional.observation_ends`].
        probes (`Sequence[list[Probe]]`, length `B`): The probes of each row.
        max_length (`int`): Context length of the model; a context after which a probe would end past it is left out.

    Returns:
        `list[ProbedRow]`, length `B`, each with `E + 1` ends.
    """
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    columns = [batch[name].tolist() for name in names] + [ends.tolist()]
    rows = []
    for prompt, prompt_mask, completion, completion_mask, row_ends, row_probes in zip(*columns, probes, strict=True):
        context = _kept(prompt, prompt_mask)
        lengths = [len(context), *(len(context) + end if end >= 0 else None for end in row_ends)]
        room = max_length - max((len(probe.ids) for probe in row_probes), default=0)
        lengths = [None if length is not None and length > room else length for length in lengths]
        rows.append(ProbedRow(context + _kept(completion, completion_mask), lengths, row_probes))
    return rows


def _kept(ids: list[int], mask: list[int]) -> list[int]:
    return [token for token, keep in zip(ids, mask, strict=True) if keep]


def share_contexts(rows: Sequence[ProbedRow]) -> tuple[list[ProbedRow], list[list[int]]]:
    """
    Probe each context in one row only, however many begin with it.

    The prompt of a group is probed once, and so are first turns that are the same word for word. That saves probes, and
    more: rows that wrote the same differ in their beliefs by rounding alone, and normalisation would turn that rounding
    into credit.

    Args:
        rows (`Sequence[ProbedRow]`, length `B`): All with as many ends, `E`.

    Returns:
        `tuple[list[ProbedRow], list[list[int]]]`: the rows without the ends that need no probe, and a key for each of their `(B, E)`
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
    if end is None or not row.probes:
        return -1
    probes = tuple(tuple(probe.ids) for probe in row.probes)
    return hash((tuple(row.context[:end]), probes))  # of integers, and so the same on every process


def shared_beliefs(beliefs: Tensor, keys: Tensor) -> Tensor:
    """
    Give equal contexts the belief of the first of them.

    Args:
        beliefs (`Tensor`, shape `(N, E)`): Beliefs, NaN where the context was scored in another row.
        keys (`Tensor`, shape `(N, E)`, long): What [`share_contexts`] returned.

    Returns:
        `Tensor`, shape `(N, E)`.
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
        rows (`list[ProbedRow]`, length `B`): Each with `E` ends, every distinct context in one row only.
        keys (`Tensor`, shape `(B, E)`): By which [`shared_beliefs`] tells equal contexts.
        first_columns (`list[int]`, length `B`): Padding to the left of each prompt.
    """

    rows: list[ProbedRow]
    keys: Tensor
    first_columns: list[int]

    @property
    def num_ends(self) -> int:
        """`E`."""
        return self.keys.size(1)


@dataclass(frozen=True)
class Query:
    """
    What to run the model over for one belief in one alias.

    Attributes:
        row (`int`), end (`int`), alias (`int`): Which belief: that of a row, at the context and in the alias with these indices.
        context_length (`int`): Tokens of the context.
        ids (`list[int]`): The context, marked where pictures stand, and the probe, up to the last token that predicts one of
            the answer.
        predictors (`list[int]`): Places in `ids` that predict a token of the answer.
        labels (`list[int]`): These tokens.
        spans (`list[PictureSpan]`): Where pictures stand in the context.
    """

    row: int
    end: int
    context_length: int
    ids: list[int]
    predictors: list[int]
    labels: list[int]
    alias: int = 0
    spans: list[PictureSpan] = field(default_factory=list)

    def pictures_from(self, place: int) -> list[ReadPicture]:
        """Those that stand at this place or after it."""
        return [picture for span in self.spans if span.start >= place for picture in span.pictures]


def queries(rows: Sequence[ProbedRow]) -> list[Query]:
    """One query for each probe of each context; none for a probe without a token of the answer."""
    return [query for i, row in enumerate(rows) for a in range(len(row.probes)) for query in _queries_of(row, i, a)]


def _queries_of(row: ProbedRow, number: int, alias: int) -> list[Query]:
    probe = row.probes[alias]
    scored = [offset for offset, on in enumerate(probe.scored) if on]
    if not scored:
        return []
    fed, labels = probe.ids[: scored[-1]], [probe.ids[offset] for offset in scored]
    return [
        Query(
            row=number,
            end=k,
            context_length=end,
            ids=row.context[:end] + fed,
            predictors=[end - 1 + offset for offset in scored],
            labels=labels,
            alias=alias,
            spans=[span for span in row.spans if span.stop <= end],
        )
        for k, end in enumerate(row.ends)
        if end is not None
    ]


def packed_length(row: ProbedRow) -> int:
    """Tokens of a completion with all of its probes, none of which another row has."""
    num_contexts = sum(end is not None for end in row.ends)
    return len(row.context) + num_contexts * sum(len(probe.ids) for probe in row.probes)


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


def belief_table(means: Tensor, found: Sequence[Query], shape: tuple[int, int], aliases: str) -> Tensor:
    """
    Beliefs by row and context, aliases joined.

    Args:
        means (`Tensor`, shape `(M,)`): Belief of each query.
        found (`Sequence[Query]`, length `M`): The queries.
        shape (`tuple[int, int]`): Rows, and contexts of each.
        aliases (`str`): The option `answer_aliases`.

    Returns:
        `Tensor` of that shape, NaN where nothing was scored.
    """
    num_aliases = max((query.alias for query in found), default=0) + 1
    table = means.new_full((*shape, num_aliases), torch.nan)
    places = ([getattr(query, name) for query in found] for name in ("row", "end", "alias"))
    table[tuple(places)] = means
    return join_aliases(table, aliases)


def join_aliases(beliefs: Tensor, aliases: str) -> Tensor:
    """
    One belief of those in the aliases of an answer.

    Args:
        beliefs (`Tensor`, shape `(…, A)`): Mean log-probability `s_a` of each alias; NaN where there is none.
        aliases (`str`): `"logsumexp"`: `log Σ_a exp(s_a)`, which may lie above 0. Else the largest `s_a`, which with
            `answer_aliases="first"` is the only one.

    Returns:
        `Tensor`, shape `(…)`: NaN where all are.

    Example:
        >>> join_aliases(torch.tensor([[-1.0, -2.0], [-3.0, float("nan")]]), "max")
        tensor([-1., -3.])
        >>> join_aliases(torch.tensor([[-1.0, -2.0], [-3.0, float("nan")]]), "logsumexp")
        tensor([-0.6867, -3.0000])
    """
    known = beliefs.masked_fill(beliefs.isnan(), -torch.inf)
    joined = known.logsumexp(dim=-1) if aliases == "logsumexp" else known.amax(dim=-1)
    return joined.where(joined.isfinite(), torch.nan)
