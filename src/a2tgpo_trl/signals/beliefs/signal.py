"""The signal `"beliefs"` of a trainer: which forward measures them, and what all processes know then."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context

from ...batch import GenerationBatch
from ...functional import observation_ends
from ...integrations.architecture import is_reference
from ...integrations.replaced import replaced
from ...rollout.generation.backends import context_length
from ..base import Signal
from .probes import scored_answer, shared_beliefs
from .scoring import BeliefScorer
from .shared_forward import SharedForward

logger = logging.get_logger(__name__)


class Beliefs(Signal):
    """
    The beliefs of a trainer's policy in the true answers.

    Where TRL computes old log-probabilities, beliefs are scored in the same forward; else in forwards of their own.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy is asked.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer
        self.scorer = BeliefScorer(
            trainer.model, trainer._tokenizer, trainer.accelerator, trainer.args, context_length(trainer)
        )

    def prepare(self, batch: GenerationBatch) -> None:
        column = self.trainer.args.answer_column
        batch.answers = [scored_answer(row.get(column), f"{column!r} of {row.get('prompt')!r}") for row in batch.rows]

    def while_scoring(self, batch: GenerationBatch) -> AbstractContextManager:
        """Where TRL computes old log-probabilities, their forward scores beliefs too."""
        if not self._shares_forward():
            return nullcontext()
        compute = self.trainer._get_per_token_logps_and_entropies
        return replaced(self.trainer, _get_per_token_logps_and_entropies=partial(self._compute_logps, compute, batch))

    def measure(self, batch: GenerationBatch, ends: Tensor) -> Tensor:
        """Beliefs at the prompts and after each observation, `(N, K + 1)`; NaN where there is none."""
        if batch.shared_forward is None:
            args = self.trainer.args
            plan = self.scorer.plan(batch.tensors, ends, batch.answers)
            size = args.per_device_train_batch_size if batch.training else args.per_device_eval_batch_size
            with profiling_context(self.trainer, "information_gain"):
                beliefs = self.scorer.measure(self.trainer.model, plan, size)
        else:
            plan, beliefs = batch.shared_forward.plan, torch.cat(batch.shared_forward.beliefs)
        beliefs, keys = batch.accelerator.gather((beliefs, plan.keys))
        return shared_beliefs(beliefs.exp() if self.trainer.args.belief_measure == "prob" else beliefs, keys)

    def _shares_forward(self) -> bool:
        """Whether beliefs are scored along with the old log-probabilities, if TRL computes these."""
        trainer = self.trainer
        corrected = trainer.use_vllm and trainer.vllm_importance_sampling_correction
        if trainer.args.every_update_is_on_policy and not corrected:
            return False
        if reason := self.scorer.why_no_shared_forward(trainer.model):
            logger.warning_once(
                f"Information gain takes forwards of its own, beside that of the old log-probabilities: {reason}."
            )
        return not reason

    def _compute_logps(
        self,
        compute: Any,
        batch: GenerationBatch,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """TRL's log-probabilities; the policy's forwards score beliefs too, a reference's do not."""
        if model is self.trainer.model and not is_reference(batch.accelerator.unwrap_model(model)):
            model = batch.shared_forward = self._share(batch, model, input_ids, attention_mask, logits_to_keep)
        return compute(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

    def _share(
        self, batch: GenerationBatch, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> SharedForward:
        prompt, completion = slice(None, -logits_to_keep), slice(-logits_to_keep, None)
        tensors = {
            "prompt_ids": input_ids[:, prompt],
            "prompt_mask": attention_mask[:, prompt],
            "completion_ids": input_ids[:, completion],
            "completion_mask": attention_mask[:, completion],
        }
        tool_mask = _padded([rollout.tool_mask for rollout in batch.rollouts], like=tensors["completion_mask"])
        ends = observation_ends(tensors["completion_mask"], tool_mask)
        return self.scorer.share_forward(model, self.scorer.plan(tensors, ends, batch.answers))


def _padded(masks: Sequence[list[int]], like: Tensor) -> Tensor:
    """Masks of completions, 1 where there is none, `(B, T)`."""
    padded = torch.ones_like(like)
    for row, mask in zip(padded, masks, strict=True):
        row[: len(mask)] = torch.as_tensor(mask)
    return padded
