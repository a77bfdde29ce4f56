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
from trl.trainer.utils import use_adapter

from ...batch import GenerationBatch
from ...functional import observation_ends, turn_ends, turn_ids
from ...integrations.architecture import is_reference
from ...integrations.replaced import replaced
from ...rollout.generation.backends import context_length
from ..base import Signal
from .probes import BeliefPlan, scored_answers, shared_beliefs
from .scoring import BeliefScorer
from .shared_forward import SharedForward

logger = logging.get_logger(__name__)


class Beliefs(Signal):
    """
    The beliefs of a trainer's policy, or of its reference, in the true answers.

    Where TRL runs that model for log-probabilities, beliefs are scored in the same forward; else in forwards of their own.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy or reference is asked.
    """

    def __init__(self, trainer: GRPOTrainer):
        super().__init__(trainer)
        self.asks_reference = trainer.args.belief_model == "reference"
        self.scorer = BeliefScorer(
            self.model, trainer.processing_class, trainer.accelerator, trainer.args, context_length(trainer)
        )

    @property
    def model(self) -> nn.Module:
        """Who is asked, as the trainer has wrapped it. The reference of an adapter is the policy in another state."""
        ref_model = self.trainer.ref_model if self.asks_reference else None
        return self.trainer.model if ref_model is None else ref_model

    def prepare(self, batch: GenerationBatch) -> None:
        column, aliases = self.trainer.args.answer_column, self.trainer.args.answer_aliases
        found = [scored_answers(row.get(column), f"{column!r} of {row.get('prompt')!r}") for row in batch.rows]
        batch.answers = [answers[:1] for answers in found] if aliases == "first" else found

    def while_scoring(self, batch: GenerationBatch) -> AbstractContextManager:
        """Where TRL runs the model that is asked, its forward scores beliefs too."""
        if not self._shares_forward():
            return nullcontext()
        # The method itself: a batch inside of another, as a reward function may play one, shares no forward of that one
        compute = partial(type(self.trainer)._get_per_token_logps_and_entropies, self.trainer)
        return replaced(self.trainer, _get_per_token_logps_and_entropies=partial(self._compute_logps, compute, batch))

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """
        Beliefs at the prompts and after each observation, `(N, K + 1)`, and with `gain_from="turn_end"` before each, `(N, K)`;
        NaN where there is none.
        """
        args = self.trainer.args
        if batch.shared_forward is None:
            plan = self._plan(batch, batch.tensors, batch.tensors["turn_ids"], ends)
            size = args.per_device_train_batch_size if batch.training else args.per_device_eval_batch_size
            with profiling_context(self.trainer, "information_gain"), self._asking():
                beliefs = self.scorer.measure(self.model, plan, size)
        else:
            plan, beliefs = batch.shared_forward.plan, torch.cat(batch.shared_forward.beliefs)
        beliefs, keys = batch.accelerator.gather((beliefs, plan.keys))
        beliefs = shared_beliefs(beliefs.exp() if args.belief_measure == "prob" else beliefs, keys)
        if args.gain_from == "turn_start":
            return {"beliefs": beliefs}
        return {"beliefs": beliefs[:, ::2], "beliefs_before_observation": beliefs[:, 1::2]}

    def _plan(
        self, batch: GenerationBatch, tensors: dict[str, Tensor], ids: Tensor, observation_ends: Tensor
    ) -> BeliefPlan:
        """What to score: the prompt, and each observation's end; with `gain_from="turn_end"` its beginning before it."""
        ends = observation_ends
        if self.trainer.args.gain_from == "turn_end":
            beginnings = turn_ends(ids).where(ends >= 0, -1)
            ends = torch.stack([beginnings, ends], dim=2).flatten(1)  # (B, 2 K)
        return self.scorer.plan(tensors, ends, batch.answers, batch.rollouts)

    def _asking(self) -> AbstractContextManager:
        """The state in which the model is the one that is asked: as TRL gets its reference's log-probabilities."""
        if not self.asks_reference or self.trainer.ref_model is not None:
            return nullcontext()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return use_adapter(model, "ref" if "ref" in model.peft_config else None)

    def _is_asked(self, model: nn.Module) -> bool:
        """Whether the model that TRL runs just now is the one that is asked."""
        runs_reference = model is self.trainer.ref_model or is_reference(self.trainer.accelerator.unwrap_model(model))
        return runs_reference == self.asks_reference

    def _shares_forward(self) -> bool:
        """Whether beliefs are scored along with log-probabilities, if TRL computes any of the model that is asked."""
        trainer = self.trainer
        corrected = trainer.use_vllm and trainer.vllm_importance_sampling_correction
        needs_old = corrected or not trainer.args.every_update_is_on_policy
        if not (trainer.beta != 0 if self.asks_reference else needs_old):
            return False
        if reason := self.scorer.why_no_shared_forward(self.model):
            which = "reference" if self.asks_reference else "old"
            logger.warning_once(
                f"Information gain takes forwards of its own, beside that of the {which} log-probabilities: {reason}."
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
        """TRL's log-probabilities; the forwards of the model that is asked score beliefs too, others do not."""
        if self._is_asked(model):
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
        masks = tensors["completion_mask"], tool_mask
        plan = self._plan(batch, tensors, turn_ids(*masks), observation_ends(*masks))
        return self.scorer.share_forward(model, plan)


def _padded(masks: Sequence[list[int]], like: Tensor) -> Tensor:
    """Masks of completions, 1 where there is none, `(B, T)`."""
    padded = torch.ones_like(like)
    for row, mask in zip(padded, masks, strict=True):
        row[: len(mask)] = torch.as_tensor(mask)
    return padded
