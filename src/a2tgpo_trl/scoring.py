"""Runs a model over what [`belief`] lays out: micro-batches, packed or prefix by prefix, the same on every process."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .architecture import attention_obstacle
from .belief import (
    ProbedRow,
    make_probe,
    packed_beliefs,
    packed_length,
    prefix_beliefs,
    probed_rows,
    share_contexts,
)
from .config import A2TGPOConfig

logger = logging.get_logger(__name__)

MAX_MASK_ELEMENTS = 2**27
"""Of the `(B, L, L)` mask of packed scoring: 128 MiB a copy, one sequence of 11,000 tokens or two of 8,000."""


class BeliefScorer:
    """
    Measures beliefs in the answers of a scored batch.

    Args:
        model (`nn.Module`): The policy with TRL's fused LM head; its architecture decides whether probes are packed.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        accelerator (`Accelerator`): Of the trainer.
        args ([`A2TGPOConfig`]): `answer_template` and `belief_measure` are read.
        context_length (`int`): Most tokens that a context and its probe may have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        args: A2TGPOConfig,
        context_length: int,
    ):
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.args = args
        self.context_length = context_length
        self.config = model.config.get_text_config()
        self.obstacle = attention_obstacle(accelerator.unwrap_model(model))
        if self.obstacle:
            logger.warning(f"Information gain takes one forward per turn, not one in all: {self.obstacle}.")

    @torch.no_grad()
    def measure(
        self, model: nn.Module, batch: dict[str, Any], ends: Tensor, answers: list[str | None], batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """
        Beliefs at the prompt and after each observation.

        Args:
            model (`nn.Module`): The policy, as the trainer has wrapped it.
            batch (`dict`): TRL's scored batch of `B` completions.
            ends (`Tensor`, shape `(B, K)`): Where observations end.
            answers (`list[str | None]`, length `B`): The true answers, `None` where there is none.
            batch_size (`int`): Rows of a micro-batch at most.

        Returns:
            `tuple[Tensor, Tensor]`, each `(B, K + 1)` with `K` the largest of all processes: beliefs, each context's
            once and NaN elsewhere; and the keys by which [`~belief.shared_beliefs`] tells equal contexts.
        """
        template = self.args.answer_template
        probes = {answer: make_probe(self.tokenizer, template, answer) for answer in set(answers) - {None}}
        rows = probed_rows(batch, ends, [probes.get(answer) for answer in answers], self.context_length)
        # The number of forwards and the number of columns are the same on every process
        sizes = torch.tensor([[ends.size(1), max(map(packed_length, rows))]], device=ends.device)
        num_turns, length = self.accelerator.gather(sizes).amax(dim=0).tolist()
        rows, keys = share_contexts([row.padded_to(num_turns) for row in rows])
        packed = self._is_packed(length)
        if packed:
            batch_size = min(batch_size, MAX_MASK_ELEMENTS // length**2)
        chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        was_training = model.training
        model.eval()  # beliefs are without dropout, and without a trace in the random state
        try:
            beliefs = torch.cat([self._score_rows(model, chunk, packed) for chunk in chunks])
        finally:
            model.train(was_training)
        beliefs = beliefs.exp() if self.args.belief_measure == "prob" else beliefs
        return beliefs, torch.tensor(keys, device=beliefs.device)

    def _is_packed(self, length: int) -> bool:
        fits = length**2 <= MAX_MASK_ELEMENTS
        if self.obstacle is None and not fits:
            logger.warning_once(
                "Information gain takes one forward per turn for the longest completions: the attention mask of their "
                "packed sequence would take too much memory."
            )
        return self.obstacle is None and fits

    def _score_rows(self, model: nn.Module, rows: list[ProbedRow], packed: bool) -> Tensor:
        def score(**inputs: Tensor) -> Tensor:
            return self._score(model, **inputs)

        device = self.accelerator.device
        if not packed:
            return prefix_beliefs(score, rows, device)
        additive = self.accelerator.unwrap_model(model).dtype if self.config._attn_implementation == "eager" else None
        return packed_beliefs(score, rows, additive, device)

    def _score(self, model: nn.Module, **inputs: Tensor) -> Tensor:
        """Log-probabilities of `shift_labels`, `(B, L)`, through TRL's fused LM head."""
        if hasattr(self.config, "output_router_logits"):
            inputs["output_router_logits"] = False  # the router's auxiliary loss cannot read a block mask
        with self.accelerator.autocast():
            return model(**inputs, fused_lm_head=True).log_probs
