"""Runs a model over what [`probes`] ask for, the same number of times on every process."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import is_torch_flex_attn_available, is_triton_available, logging

from ...config import A2TGPOConfig
from ...integrations.architecture import (
    base_model,
    length_dependent_rope,
    why_no_pictures_in_trees,
    why_no_token_tree,
    why_padding_shifts,
    why_random,
)
from ...integrations.processors import tokenizer_of
from ...integrations.progress import progress
from ...rollout import Rollout
from .attention import BLOCK, UnknownAttention, attention_over, why_no_flex
from .head import predicting_at
from .packing import TokenTree, batches_by_length, pack
from .pictures import ContextPictures, ReadPicture, unmarked
from .probes import (
    BeliefPlan,
    Query,
    belief_table,
    make_probe,
    mean_logps,
    packed_length,
    probed_rows,
    queries,
    share_contexts,
)
from .shared_forward import SharedForward

logger = logging.get_logger(__name__)


class BeliefScorer:
    """
    Measures beliefs in the answers of a batch.

    Args:
        model (`nn.Module`): Who is asked, with TRL's fused LM head; its architecture decides how it is run.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): A fast tokenizer, or a processor for pictures with
            one.
        accelerator (`Accelerator`): Of the trainer.
        args ([`A2TGPOConfig`]): `answer_template`, `answer_aliases` and `ig_tokens_per_batch` are read.
        context_length (`int`): Most tokens that a context and its probe may have.
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        accelerator: Accelerator,
        args: A2TGPOConfig,
        context_length: int,
    ):
        self.tokenizer = tokenizer_of(processing_class)
        self.accelerator = accelerator
        self.args = args
        self.context_length = context_length
        base = accelerator.unwrap_model(model)
        self.config = base.config.get_text_config()
        self.base = base_model(base)
        self.attention = self._choose_attention()
        self.why_prefixes = why_no_token_tree(base)
        self.pictures = None
        if isinstance(processing_class, ProcessorMixin):
            self.pictures = ContextPictures(processing_class, self.base)
            self.why_prefixes = self.why_prefixes or why_no_pictures_in_trees(self.base)
        if self.why_prefixes:
            logger.warning(f"Information gain reads each context from its beginning: {self.why_prefixes}.")

    def _choose_attention(self) -> str:
        device = self.accelerator.device
        compiles = device.type == "cuda" and is_torch_flex_attn_available() and is_triton_available()
        if not (compiles and self.base._supports_flex_attn):
            return "blocks"
        if reason := why_no_flex(self.config, self.base.dtype, device):
            logger.warning(f"Flex attention cannot be used, and is not needed: {reason}.")
        return "blocks" if reason else "flex"

    def plan(
        self, batch: dict[str, Any], ends: Tensor, answers: list[list[str]], rollouts: Sequence[Rollout]
    ) -> BeliefPlan:
        """
        What to score, with as many columns on every process.

        Args:
            batch (`dict`): TRL's prompts and completions with their masks.
            ends (`Tensor`, shape `(B, E)`): Where the contexts after the prompt end.
            answers (`list[list[str]]`, length `B`): The aliases to score of each true answer, none where there is no answer.
            rollouts (`Sequence[Rollout]`, length `B`): Whose pictures stand in the contexts.

        Returns:
            [`BeliefPlan`]
        """
        distinct = {alias for aliases in answers for alias in aliases}
        probes = {alias: make_probe(self.tokenizer, self.args.answer_template, alias) for alias in distinct}
        rows = probed_rows(batch, ends, [[probes[alias] for alias in row] for row in answers], self.context_length)
        if self.pictures is not None:
            rows = [row.with_pictures(spans) for row, spans in zip(rows, self.pictures.spans(rollouts), strict=True)]
        num_ends = int(self._on_all(ends.size(1)).max()) + 1
        rows, keys = share_contexts([row.padded_to(num_ends) for row in rows])
        first_columns = batch["prompt_mask"].size(1) - batch["prompt_mask"].sum(dim=1)
        return BeliefPlan(rows, torch.tensor(keys, device=ends.device), first_columns.tolist())

    def why_no_shared_forward(self, model: nn.Module) -> str | None:
        """Why beliefs cannot be scored along with the old log-probabilities, or `None` if they can."""
        return self.why_prefixes or why_padding_shifts(self.base) or why_random(model)

    def share_forward(self, model: nn.Module, plan: BeliefPlan) -> SharedForward:
        """The model, scoring beliefs as TRL runs it over the batch of a plan."""
        table = partial(belief_table, aliases=self.args.answer_aliases)
        return SharedForward(model, plan, self.base, self._score, table, self.accelerator.num_processes == 1)

    @torch.no_grad()
    def measure(self, model: nn.Module, plan: BeliefPlan, batch_size: int) -> Tensor:
        """
        Beliefs at the contexts of a plan, in forwards of their own.

        Args:
            model (`nn.Module`): Who is asked, as the trainer has wrapped it.
            plan ([`BeliefPlan`]): What to score.
            batch_size (`int`): Rows of a micro-batch, which without `ig_tokens_per_batch` has as many tokens as so many of
                the longest.

        Returns:
            `Tensor`, shape `(B, E)`: mean log-probabilities, NaN where there is nothing to score or another row has it.
        """
        found = queries(plan.rows)
        max_tokens = self.args.ig_tokens_per_batch or batch_size * max(map(packed_length, plan.rows))
        with _in_eval_mode(model):  # without dropout, and without a trace in the random state
            try:
                means = (self._score_prefixes if self.why_prefixes else self._score_trees)(model, found, max_tokens)
            except UnknownAttention as error:  # at the first layer of the first forward, on every process
                self.why_prefixes = f"{self.config.model_type} gives its attention {error}"
                logger.warning(f"Information gain reads each context from its beginning: {self.why_prefixes}.")
                means = self._score_prefixes(model, found, max_tokens)
        return belief_table(means, found, (len(plan.rows), plan.num_ends), self.args.answer_aliases)

    def _score_trees(self, model: nn.Module, found: list[Query], max_tokens: int) -> Tensor:
        fields = ([getattr(query, name) for query in found] for name in ("ids", "context_length", "row"))
        trees = pack(*fields, max_tokens)
        spare, tree = _spare(found), TokenTree()
        tree.add(len(found), spare.ids)
        return self._in_turn(partial(self._score_tree, model, [*found, spare]), trees, tree, len(found))

    def _score_tree(self, model: nn.Module, found: Sequence[Query], tree: TokenTree) -> tuple[list[int], Tensor]:
        """The queries in a tree, and their beliefs."""
        device = self.accelerator.device
        keys = list(tree.branches)
        labels, predictors, owner, pictures = [], [], [], []
        for i, key in enumerate(keys):
            query, branch = found[key], tree.branches[key]
            labels += query.labels
            predictors += [branch.place(depth) for depth in query.predictors]
            owner += [i] * len(query.labels)
            pictures += query.pictures_from(branch.shared)
        if self.attention == "flex":
            tree.pad_to_multiple_of(BLOCK)
        places = [0] * len(predictors), predictors
        with attention_over(tree, self.config, self.attention, device) as mask, predicting_at(self.base, *places):
            logps = self._score(
                model,
                **self._inputs([unmarked(tree.ids)], pictures),
                position_ids=self._tree_positions(tree, found).to(device),
                attention_mask=mask,
                shift_labels=torch.tensor([labels], device=device),
            )
        return keys, mean_logps(logps[0], torch.tensor(owner, device=device), len(keys))

    def _tree_positions(self, tree: TokenTree, found: Sequence[Query]) -> Tensor:
        """`(1, N)`, or as many rows of them as the model has dimensions of positions."""
        chosen = [(found[key], branch) for key, branch in tree.branches.items()]
        if not any(query.spans for query, _ in chosen) or not self.pictures.rotates_in_space:
            return torch.tensor([tree.positions])
        own = [self.pictures.positions(query.ids, query.pictures_from(0))[:, :, b.shared :] for query, b in chosen]
        positions = torch.cat(own, dim=2)
        return F.pad(positions, (0, len(tree.ids) - positions.size(2)))

    def _inputs(self, rows: list[list[int]], pictures: Sequence[ReadPicture]) -> dict[str, Tensor]:
        """Token ids of rows of one length, and with pictures what they are to a model."""
        ids = torch.tensor(rows, device=self.accelerator.device)
        return {"input_ids": ids, **(self.pictures.inputs(ids, pictures) if pictures else {})}

    def _score_prefixes(self, model: nn.Module, found: list[Query], max_tokens: int) -> Tensor:
        equal = length_dependent_rope(self.base) is not None
        batches = batches_by_length([len(query.ids) for query in found], max_tokens, equal)
        score = partial(self._score_batch, model, [*found, _spare(found)])
        return self._in_turn(score, batches, [len(found)], len(found))

    def _score_batch(self, model: nn.Module, found: Sequence[Query], keys: list[int]) -> tuple[list[int], Tensor]:
        """Some queries, and their beliefs, each in a row of its own."""
        device = self.accelerator.device
        chosen = [found[key] for key in keys]
        # A label is the token after its predictor
        rows = [[*unmarked(query.ids), query.labels[-1]] for query in chosen]
        width = max(map(len, rows))
        pictures = [picture for query in chosen for picture in query.pictures_from(0)]
        inputs = self._inputs([row + [0] * (width - len(row)) for row in rows], pictures)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        scored = torch.zeros_like(mask, dtype=torch.bool)
        for i, query in enumerate(chosen):
            scored[i, [place + 1 for place in query.predictors]] = True
        labels = inputs["input_ids"].masked_fill(~scored, -100)
        logps = self._score(model, **inputs, attention_mask=mask, labels=labels)
        scored = scored[:, 1:]
        owner = torch.arange(len(chosen), device=device).unsqueeze(1).expand_as(scored)
        # An adapter may have put tokens before the first
        return keys, mean_logps(logps[:, 1 - width :][scored], owner[scored], len(chosen))

    def _in_turn(
        self, score: Callable[[Any], tuple[list[int], Tensor]], batches: list[Any], spare: Any, num_queries: int
    ) -> Tensor:
        """Beliefs of all queries, in as many forwards as the process with most batches needs."""
        means = torch.full((num_queries + 1,), torch.nan, device=self.accelerator.device)
        batches = batches + [spare] * (int(self._on_all(len(batches)).max()) - len(batches))
        with progress("Beliefs", len(batches), "forward", self.args.disable_tqdm) as bar:
            for batch in batches:
                keys, beliefs = score(batch)
                means[keys] = beliefs.to(means.dtype)
                bar.update()
        return means[:num_queries]

    def _on_all(self, number: int) -> Tensor:
        return self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))

    def _score(self, model: nn.Module, **inputs: Any) -> Tensor:
        """Log-probabilities of `labels` or `shift_labels`, through TRL's fused LM head."""
        if hasattr(self.config, "output_router_logits"):
            inputs["output_router_logits"] = False  # the router's auxiliary loss cannot read a mask of ours
        with self.accelerator.autocast():
            return model(**inputs, fused_lm_head=True).log_probs.to(self.accelerator.device)


def _spare(found: Sequence[Query]) -> Query:
    """
    What a process scores while others have more to score, so that all make the same forwards: one token, or the shortest
    query with pictures, for the vision part of a model that is sharded runs on all processes or on none.
    """
    token = Query(row=0, end=0, context_length=1, ids=[0], predictors=[0], labels=[0])
    return min((query for query in found if query.spans), key=lambda query: len(query.ids), default=token)


@contextmanager
def _in_eval_mode(model: nn.Module):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
