"""TRL's generation backends: where each keeps its limit, its stop strings and its sampling, and what it can do."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from ...integrations.replaced import replaced


class Backend(ABC):
    """
    One generation backend of a trainer, with its generation set up.

    Args:
        trainer ([`~trl.GRPOTrainer`]): Its settings are read and replaced for a while, never copied.

    Attributes:
        takes_row_options (`bool`): Whether `model.generate` writes the turns, which takes limits by row and a cache, and pictures as
            tensors.
        needs_equal_rows (`bool`): Whether a collective generation needs as many rows from each process.
        one_limit_for_all (`bool`): Whether one process sets the limit of a collective generation for all of them.
        runs_engine (`bool`): Whether an engine writes the turns, which rollouts may join while it writes others.
    """

    takes_row_options = False
    needs_equal_rows = False
    one_limit_for_all = False
    runs_engine = False
    _limit: str
    _greedy: dict[str, Any]
    _refuses_to_read_on = False
    _context_in_words = "the model's context"

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer

    @property
    def sharding(self) -> str | None:
        """In words, what spreads the weights over several processes."""
        return None if self.trainer.accelerator.num_processes == 1 else _sharding(self.trainer)

    @property
    def collective(self) -> str | None:
        """The backend in words if its generations are of all processes together."""
        if self.trainer.accelerator.num_processes == 1:
            return None
        return self._what_is_collective(_sharding(self.trainer))

    @property
    @abstractmethod
    def settings(self) -> Any:
        """What TRL reads its sampling parameters from, at each generation."""

    @abstractmethod
    def stop_at(self, strings: Sequence[str]) -> list[str]:
        """End generation at these strings as well; returns them behind those that the user configured."""

    @abstractmethod
    def never_write(self, tokens: Sequence[int]) -> None:
        """Let generation write none of these tokens."""

    @abstractmethod
    def _what_is_collective(self, sharding: str | None) -> str | None:
        """In words, on several processes, what makes generation collective."""

    @property
    def max_tokens(self) -> int:
        """Tokens that a generation may have at most."""
        return getattr(self.settings, self._limit)

    @property
    def max_model_length(self) -> int:
        """Tokens of prompt and completion that the backend takes."""
        return context_length(self.trainer)

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """
        Refuse prompts that the backend cannot read.

        Raises:
            ValueError: If one leaves no room for a token.
        """
        longest, room = max(map(len, prompts), default=0), self.max_model_length
        if self._refuses_to_read_on and longest >= room:
            raise ValueError(
                f"A prompt has {longest} tokens, and {self._context_in_words} is {room} for prompt and completion: raise "
                "it, or leave out long prompts."
            )

    def raising_failures(self) -> AbstractContextManager:
        """While a turn that the backend could not write is an error, where TRL would go on with none."""
        return nullcontext()

    def limited_to(self, max_tokens: int) -> AbstractContextManager:
        """While generations may have at most so many tokens."""
        return replaced(self.settings, **{self._limit: max_tokens})

    def greedy(self) -> AbstractContextManager:
        """While the most likely token is taken."""
        return replaced(self.settings, **self._greedy)


class TransformersBackend(Backend):
    """`model.generate`."""

    takes_row_options = True
    _limit = "max_new_tokens"
    _greedy = {"do_sample": False}

    @property
    def settings(self) -> Any:
        return self.trainer.generation_config

    def stop_at(self, strings: Sequence[str]) -> list[str]:
        options = self.trainer.generation_kwargs
        stops = _joined(options.get("stop_strings"), strings)
        if stops:
            self.settings.stop_strings = options["stop_strings"] = stops
        return stops

    def never_write(self, tokens: Sequence[int]) -> None:
        options = self.trainer.generation_kwargs
        suppressed = [*(options.get("suppress_tokens") or []), *tokens]
        self.settings.suppress_tokens = options["suppress_tokens"] = suppressed

    def _what_is_collective(self, sharding: str | None) -> str | None:
        return sharding


class ContinuousBatchingBackend(TransformersBackend):
    """`model.generate_batch`, which knows no stop strings: turns are cut after they were written."""

    takes_row_options = False

    def raising_failures(self) -> AbstractContextManager:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return replaced(model, generate_batch=partial(_generate_all, model.generate_batch))


class VLLMBackend(Backend):
    """vLLM, in this process or as a server."""

    needs_equal_rows = True
    one_limit_for_all = True
    runs_engine = True
    _limit = "max_completion_length"
    _refuses_to_read_on = True
    _greedy = {"temperature": 0.0}

    @property
    def settings(self) -> Any:
        return self.trainer.vllm_generation

    @property
    def _context_in_words(self) -> str:
        return "the model's context" if self.trainer.vllm_mode == "server" else "vllm_max_model_length"

    @property
    def max_model_length(self) -> int:
        if self.trainer.vllm_mode == "server":
            return super().max_model_length
        return self.settings.llm.llm_engine.model_config.max_model_len

    def stop_at(self, strings: Sequence[str]) -> list[str]:
        given = self.settings.generation_kwargs  # the dict of the user's configuration itself
        stops = _joined(given.get("stop"), strings)
        if stops:
            # A tag may be a special token, which vLLM would skip in the text where it looks for stop strings
            options = {"stop": stops, "include_stop_str_in_output": True, "skip_special_tokens": False}
            self.settings.generation_kwargs = {**given, **options}
        return stops

    def never_write(self, tokens: Sequence[int]) -> None:
        given = self.settings.generation_kwargs
        biases = {**(given.get("logit_bias") or {}), **dict.fromkeys(tokens, -100.0)}
        self.settings.generation_kwargs = {**given, "logit_bias": biases}

    def _what_is_collective(self, sharding: str | None) -> str | None:
        if self.trainer.vllm_mode == "server":
            return "a vLLM server"
        if self.trainer.vllm_tensor_parallel_size > 1:
            return "vLLM with tensor parallelism"
        # Weights that sleep are gathered and pushed again before each generation
        return f"vLLM's sleep mode with {sharding}" if self.trainer.args.vllm_enable_sleep_mode and sharding else None


def backend_of(trainer: GRPOTrainer) -> Backend:
    """The backend that the trainer generates with."""
    if trainer.use_vllm:
        return VLLMBackend(trainer)
    if trainer.use_transformers_continuous_batching:
        return ContinuousBatchingBackend(trainer)
    return TransformersBackend(trainer)


def context_length(trainer: GRPOTrainer) -> int:
    """Tokens that the policy can read."""
    return getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def _generate_all(generate_batch: Callable[..., dict], inputs: list[list[int]], **options: Any) -> dict:
    outputs = generate_batch(inputs, **options)
    errors = [output.error for output in outputs.values() if output.error is not None]
    missing = len(inputs) - len(outputs) + len(errors)
    if missing:
        raise RuntimeError(
            f"Continuous batching wrote {len(inputs) - missing} of {len(inputs)} turns: {errors[0] if errors else 'see its log'}. "
            "A context has to fit its cache: see transformers_continuous_batching_config."
        )
    return outputs


def _joined(configured: str | Sequence[str] | None, strings: Sequence[str]) -> list[str]:
    configured = [configured] if isinstance(configured, str) else configured or []
    return list(dict.fromkeys([*configured, *strings]))


def _sharding(trainer: GRPOTrainer) -> str | None:
    return "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if trainer.is_fsdp_enabled else None
