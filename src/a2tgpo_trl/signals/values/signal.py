"""The signal `"values"` of a trainer: a critic that is asked before each turn, and trained beside the policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.utils import logging
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context

from ...batch import GenerationBatch, is_cut_off
from ...functional import turn_starts, value_loss
from ...integrations.architecture import base_model
from ..base import Signal, gather_turns
from .critic import Critic
from .updates import CriticUpdates

logger = logging.get_logger(__name__)

FILE = "critic.pt"
"""The critic's weights in a checkpoint; engines take every `.safetensors` file there for the policy's."""


class Values(Signal):
    """
    What a critic expects of the rest of a rollout, read at the last token before each turn: it cannot depend on the turn itself.

    The loss of the critic is a mean over all turns of a generation batch, each once, whatever micro-batches and processes they are in.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy the critic is made from, and whose optimizer trains it.

    Raises:
        ValueError: If the trainer has a processor of pictures, shards its model, scales gradients per process, or was given a schedule of learning rates.
    """

    def __init__(self, trainer: GRPOTrainer):
        super().__init__(trainer)
        _check(trainer)
        self.critic = Critic(trainer.model, trainer.args.critic_layers).to(trainer.accelerator.device)
        self._hidden_states: list[Tensor] = []  # of the policy's forward in the loss that is being computed
        trainer.add_callback(CriticUpdates(self.critic, trainer.accelerator, self._log_in_training))

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """
        Values, `(N, K + 1)`: before each turn, and after the last one 0, or the last token's value where a limit cut the rollout
        off; NaN elsewhere.
        """
        cut_off = torch.tensor([is_cut_off(rollout, self._last_tokens) for rollout in batch.rollouts])
        places = value_places(batch.tensors["turn_ids"], batch.tensors["completion_mask"])
        args = self.trainer.args
        size = args.per_device_train_batch_size if batch.training else args.per_device_eval_batch_size
        with torch.no_grad(), profiling_context(self.trainer, "values"):
            parts = [
                self._read(self._run(part), part["turn_ids"], part["completion_mask"], places.size(1))
                for part in _parts(batch.tensors, size)
            ]
        values = torch.cat(parts)
        num_turns = batch.tensors["turn_ids"].amax(dim=1) + 1
        is_last = torch.arange(places.size(1), device=values.device) == num_turns.unsqueeze(1)
        ended = is_last & ~cut_off.to(values.device).unsqueeze(1)
        values = self._without_broken(batch, values.masked_fill(ended, 0.0), places >= 0)
        return {"values": gather_turns(batch, values, torch.nan)}

    def _without_broken(self, batch: GenerationBatch, values: Tensor, there: Tensor) -> Tensor:
        """Values, NaN throughout for rollouts in which one is NaN or infinite: sums over their turns would be another number."""
        broken = (there & ~values.isfinite()).any(dim=1)
        number = batch.accelerator.reduce(broken.sum(), reduction="sum").item()
        self.trainer._metrics[batch.mode]["critic/non_finite_values"].append(float(number))
        if number:
            logger.warning(
                f"The critic gave NaN or infinity for {number} rollouts, whose turns get no credit and teach it nothing. Lower "
                "critic_learning_rate, and look for rewards that are very large."
            )
        return values.masked_fill(broken.unsqueeze(1), torch.nan)

    @contextmanager
    def while_computing_loss(self, model: nn.Module) -> Iterator[None]:
        """Without blocks of its own the critic reads the hidden states of the policy's forward."""
        if self.critic.blocks is not None:
            yield
            return
        keep = lambda module, args, outputs: self._hidden_states.append(outputs[0])  # noqa: E731
        self._hidden_states.clear()
        handle = self._decoder.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def loss(self, inputs: Mapping[str, Any]) -> Tensor:
        args, targets = self.trainer.args, inputs["value_targets"]
        hidden = self._hidden_states.pop() if self.critic.blocks is None else self._run(inputs)
        values = self._read(hidden, inputs["turn_ids"], inputs["completion_mask"], targets.size(1) + 1)[:, :-1]
        there = ~targets.isnan()
        values, old, targets = values[there], inputs["old_values"][there], targets[there]
        errors, weights = value_loss(values, old, targets, args.cliprange_value), inputs["value_weights"][there]
        clipped = (errors > (values - targets) ** 2).to(errors.dtype)
        self._log(inputs, weights * errors.detach(), weights * clipped)
        return args.vf_coef * (weights * errors).sum() / self._num_targets(inputs)

    def param_groups(self) -> list[dict[str, Any]]:
        trained = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        args = self.trainer.args
        return [{"params": trained, "lr": args.critic_learning_rate, "weight_decay": args.weight_decay}]

    def save(self, folder: str | Path) -> None:
        torch.save(self.critic.state_dict(), Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        file = Path(folder) / FILE
        layers = self.trainer.args.critic_layers
        if not file.is_file():
            raise ValueError(
                f"resume_from_checkpoint: {folder} has no {FILE}, for it is of a run without a critic. Name a checkpoint of a run with "
                f"advantage_estimator={self.trainer.args.advantage_estimator!r}, or start from its weights as the model."
            )
        weights, expected = torch.load(file, map_location="cpu", weights_only=True), self.critic.state_dict()
        if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in expected.items()}:
            raise ValueError(
                f"resume_from_checkpoint: {file} holds another critic than critic_layers={layers} of this model has. Set critic_layers "
                "and the model as in the run that is resumed."
            )
        self.critic.load_state_dict(weights)

    @property
    def _decoder(self) -> nn.Module:
        return base_model(self.trainer.accelerator.unwrap_model(self.trainer.model)).get_decoder()

    @property
    def _last_tokens(self) -> set[int]:
        return {*self.trainer.eos_token_ids, self.trainer._tokenizer.pad_token_id}

    def _run(self, tensors: Mapping[str, Any]) -> Tensor:
        """Hidden states of prompts and completions, `(B, L, H)`."""
        input_ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], dim=1)
        mask = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], dim=1)
        if self.critic.blocks is not None:
            return self.critic.hidden_states(input_ids, mask)
        with self.trainer.accelerator.autocast():
            return self._decoder(input_ids=input_ids, attention_mask=mask, use_cache=False)[0]

    def _read(self, hidden_states: Tensor, turn_ids: Tensor, completion_mask: Tensor, width: int) -> Tensor:
        """Values before turns and at the last token, `(B, width)`; NaN elsewhere."""
        places = value_places(turn_ids, completion_mask)
        places = nn.functional.pad(places, (0, width - places.size(1)), value=-1)
        first = hidden_states.size(1) - turn_ids.size(1) - 1  # of the last prompt token
        return self.critic(hidden_states, first + places.clamp(min=0)).where(places >= 0, torch.nan)

    def _num_targets(self, inputs: Mapping[str, Any]) -> Tensor:
        """What the errors of a micro-batch are divided by, as TRL does with its tokens (`loss_type="dapo"`)."""
        trainer = self.trainer
        number = inputs["num_value_targets"].clamp(min=1) / trainer.accelerator.num_processes
        if trainer.model.training:  # in evaluation the batch is not split
            number = number * trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation
        return number

    def _log(self, inputs: Mapping[str, Any], errors: Tensor, clipped: Tensor) -> None:
        """Such that the mean over the micro-batches of a generation batch is that over its turns."""
        sums = torch.stack([errors.sum(), clipped.sum()])
        splits = self.trainer.args.steps_per_generation if self.trainer.model.training else 1
        share = (
            self.trainer.accelerator.reduce(sums, reduction="sum") * splits / inputs["num_value_targets"].clamp(min=1)
        )
        metrics = self.trainer._metrics["train" if self.trainer.model.training else "eval"]
        for name, value in zip(("value_loss", "clip_ratio"), share.tolist(), strict=True):
            metrics[f"critic/{name}"].append(value)

    def _log_in_training(self, name: str, value: float) -> None:
        self.trainer._metrics["train"][name].append(value)


def value_places(turn_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """
    How many tokens of a completion are read before each value.

    Args:
        turn_ids (`Tensor`, shape `(B, T)`, long): Turn of each token, -1 off-turn.
        completion_mask (`Tensor`, shape `(B, T)`): 1 on completion tokens, 0 on padding.

    Returns:
        `Tensor`, shape `(B, K + 1)`, long: those before turn `k` at index `k`, all of them at the index after the last turn; -1
        elsewhere.
    """
    starts = nn.functional.pad(turn_starts(turn_ids), (0, 1), value=-1)
    num_turns = turn_ids.amax(dim=1, keepdim=True) + 1
    return starts.scatter(1, num_turns, completion_mask.sum(dim=1, keepdim=True).long())


def _parts(tensors: Mapping[str, Any], size: int) -> list[dict[str, Tensor]]:
    """Micro-batches of what a critic reads."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "turn_ids")
    parts = zip(*(tensors[name].split(size) for name in names), strict=True)
    return [dict(zip(names, part, strict=True)) for part in parts]


def _check(trainer: GRPOTrainer) -> None:
    """Refuse what the critic's gradients or its part of the optimizer cannot work with."""
    name = f"advantage_estimator={trainer.args.advantage_estimator!r}"
    if isinstance(trainer.processing_class, ProcessorMixin):
        raise ValueError(
            f"{name} trains a critic, which reads tokens and no pictures: pass the processor's tokenizer to train on text, or choose an "
            "estimator without a critic, such as 'gtpo'."
        )
    for sharding, enabled in {"DeepSpeed": trainer.is_deepspeed_enabled, "FSDP": trainer.is_fsdp_enabled}.items():
        if enabled:
            raise ValueError(
                f"{name} trains a critic beside the policy, and {sharding} takes one model and its optimizer alone: launch without "
                f"{sharding} (several processes may train copies), or choose an estimator without a critic, such as 'gtpo'."
            )
    if trainer.args.fp16 and trainer.accelerator.num_processes > 1:
        raise ValueError(
            f"{name} trains a critic, and with fp16=True processes could leave out different steps of it: set bf16=True, or run one "
            "process."
        )
    if trainer.lr_scheduler is not None:
        raise ValueError(
            f"{name} adds its critic to the optimizer, and the schedule of learning rates in optimizers was "
            "made without it: pass (optimizer, None), and choose the schedule with lr_scheduler_type."
        )
