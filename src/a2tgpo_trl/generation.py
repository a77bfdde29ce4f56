"""Turns of the model, on any of TRL's backends: where they end, how long they may be, and what was read before."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import StoppingCriteriaList
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl import GRPOTrainer

from .replaced import replaced
from .rollout import HistoryCache, ToolProtocol, history_obstacle

logger = logging.get_logger(__name__)

Turns = tuple[list[list[int]], list[list[float]] | None]


class TurnGenerator:
    """
    Writes turns with the backend of a trainer.

    Args:
        trainer ([`~trl.GRPOTrainer`]): With its generation set up.
        protocol ([`~rollout.ToolProtocol`]): Says where turns end; gets the stop strings that the user configured.

    Attributes:
        seconds (`float`): How long the last generation took.
        tokens_fed (`int`, *optional*): Tokens that the model has read in this batch, padding not counted; `None` where
            the backend does not tell.
    """

    def __init__(self, trainer: GRPOTrainer, protocol: ToolProtocol):
        self.trainer = trainer
        self.protocol = protocol
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.collective = _collective_backend(trainer)
        self.seconds = 0.0
        self._history = None
        self._tokens_read_again = 0
        self._in_transformers = not (trainer.use_vllm or trainer.use_transformers_continuous_batching)
        protocol.stop_strings = self._stop_at(protocol.stop_strings)
        if self.collective and not trainer.args.lockstep:
            logger.warning(
                f"All rollouts take their turns in lockstep: {self.collective} needs the same generations on all processes."
            )
        if self._in_transformers and trainer.args.reuse_history:
            if obstacle := history_obstacle(self.model, trainer.generation_config):
                logger.warning(f"Each turn reads its whole history again: {obstacle}.")
            else:
                self._history = HistoryCache(self.model, share_prompts=not self.collective)

    @property
    def tokens_fed(self) -> int | None:
        if not self._in_transformers:
            return None
        return self._tokens_read_again if self._history is None else self._history.tokens_fed

    def clear(self) -> None:
        """Forget what was read: before a batch of rollouts, and after it."""
        self._tokens_read_again = 0
        if self._history is not None:
            self._history.clear()

    def forget(self, rows: Iterable[int]) -> None:
        """Forget what was read of rollouts that are over."""
        if self._history is not None:
            self._history.drop(rows)

    def write(
        self,
        generate: Callable[..., Turns],
        rows: Sequence[int],
        contexts: list[list[int]],
        max_tokens: int | None,
        batch_size: int,
        num_generations: int = 1,
    ) -> Turns:
        """
        Write the next turn after each context.

        Args:
            generate (`Callable`): TRL's `_generate_single_turn`.
            rows (`Sequence[int]`, length `B`): Which rollout of the batch each context belongs to.
            contexts (`list[list[int]]`, length `B`): Token ids.
            max_tokens (`int`, *optional*): Tokens of a turn at most; TRL's `max_completion_length` if `None`.
            batch_size (`int`): The largest `B` of all processes.
            num_generations (`int`): How often each context follows itself.

        Returns:
            `tuple`: for each context the turn's token ids; and their log-probabilities if the backend tells them.
        """
        start = perf_counter()
        size = len(contexts)
        missing = (batch_size if self.trainer.use_vllm else min(batch_size, 1)) - size if self.collective else 0
        rows = [*rows, *[None] * missing]
        contexts = contexts + [[self.trainer._tokenizer.eos_token_id]] * missing
        with self._limited_to(max_tokens), self._generating(rows, contexts, stop_at_once=size == 0):
            ids, logprobs = generate(contexts, None, {}, num_generations)
        ends = [self.protocol.cut_turn(turn) for turn in ids]
        ids = [turn[:end] for turn, end in zip(ids, ends, strict=True)]
        if self._history is None:
            self._tokens_read_again += sum(map(len, contexts)) + sum(max(len(turn) - 1, 0) for turn in ids)
        else:
            self._history.keep(ids)
        if logprobs is not None:
            logprobs = [turn[:end] for turn, end in zip(logprobs, ends, strict=True)][:size]
        self.seconds = perf_counter() - start
        return ids[:size], logprobs

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Maxima over all processes where generation is collective, else the numbers themselves."""
        if not self.collective:
            return numbers
        accelerator = self.trainer.accelerator
        return tuple(accelerator.gather(torch.tensor([numbers], device=accelerator.device)).amax(dim=0).tolist())

    def _stop_at(self, strings: list[str]) -> list[str]:
        """End generation at these strings as well; returns them with those that the user configured."""
        trainer = self.trainer
        given = trainer.vllm_generation.generation_kwargs if trainer.use_vllm else trainer.generation_kwargs
        configured = given.get("stop" if trainer.use_vllm else "stop_strings") or []
        stops = [*([configured] if isinstance(configured, str) else configured), *strings]
        if not stops:
            return stops
        if trainer.use_vllm:
            # A tag may be a special token, which vLLM would skip in the text where it looks for stop strings
            options = {"stop": stops, "include_stop_str_in_output": True, "skip_special_tokens": False}
            trainer.vllm_generation.generation_kwargs = {**given, **options}
        else:
            trainer.generation_config.stop_strings = trainer.generation_kwargs["stop_strings"] = stops
        return stops

    @contextmanager
    def _limited_to(self, max_tokens: int | None):
        trainer = self.trainer
        settings, option = (
            (trainer.vllm_generation, "max_completion_length")
            if trainer.use_vllm
            else (trainer.generation_config, "max_new_tokens")
        )
        limit = getattr(settings, option)
        with replaced(settings, **{option: limit if max_tokens is None else min(limit, max_tokens)}):
            yield

    @contextmanager
    def _generating(self, rows: list[int | None], contexts: list[list[int]], stop_at_once: bool):
        """While TRL generates, pass `model.generate` what TRL does not: a tokenizer for stop strings, and histories."""
        if not self._in_transformers:
            yield
            return
        generate = self.model.generate
        if self.protocol.stop_strings:
            generate = partial(generate, tokenizer=self.trainer._tokenizer)
        if stop_at_once:
            generate = partial(generate, stopping_criteria=StoppingCriteriaList([_stop_at_once]))
        if self._history is not None:
            generate = partial(self._history.generate, generate, rows, contexts)
        with replaced(self.model, generate=generate):
            yield


def _stop_at_once(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return input_ids.new_ones(len(input_ids), dtype=torch.bool)


def _collective_backend(trainer: GRPOTrainer) -> str | None:
    """The backend in words if its generations are of all processes together."""
    if trainer.accelerator.num_processes == 1:
        return None
    if trainer.use_vllm:
        if trainer.vllm_mode == "server":
            return "a vLLM server"
        return "vLLM with tensor parallelism" if trainer.vllm_tensor_parallel_size > 1 else None
    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3"
    return "FSDP" if trainer.is_fsdp_enabled else None
