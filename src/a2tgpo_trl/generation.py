"""Turns of the model, on any of TRL's backends: where they end, how long they may be, and what was read before."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
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
        max_tokens: Sequence[int],
        batch_size: int,
        num_generations: int = 1,
    ) -> Turns:
        """
        Write the next turn after each context.

        Args:
            generate (`Callable`): TRL's `_generate_single_turn`.
            rows (`Sequence[int]`, length `B`): Which rollout of the batch each context belongs to.
            contexts (`list[list[int]]`, length `B`): Token ids.
            max_tokens (`Sequence[int]`, length `B`): Tokens that each turn may have.
            batch_size (`int`): The largest `B` of all processes.
            num_generations (`int`): How often each context follows itself.

        Returns:
            `tuple`: for each context the turn's token ids; and their log-probabilities if the backend tells them.
        """
        start = perf_counter()
        size = len(contexts)
        missing = (batch_size if self.trainer.use_vllm else min(batch_size, 1)) - size if self.collective else 0
        missing = max(missing, 0)
        rows = [*rows, *[None] * missing]
        contexts = contexts + [[self.trainer._tokenizer.eos_token_id]] * missing
        limits = [*max_tokens, *[1] * missing]
        with self._limited_to(limits), self._generating(rows, contexts, limits):
            ids, logprobs = generate(contexts, None, {}, num_generations)
        ends = [min(self.protocol.cut_turn(turn), limit) for turn, limit in zip(ids, limits, strict=True)]
        ids = [turn[:end] for turn, end in zip(ids, ends, strict=True)]
        if self._history is None:
            self._tokens_read_again += sum(map(len, contexts)) + sum(max(len(turn) - 1, 0) for turn in ids)
        else:
            self._history.keep(ids)
        if logprobs is not None:
            logprobs = [turn[:end] for turn, end in zip(logprobs, ends, strict=True)][:size]
        self.seconds = perf_counter() - start
        return ids[:size], logprobs

    def agree(self, number: int) -> int:
        """The maximum over all processes where generation is collective, else the number itself."""
        if not self.collective:
            return number
        accelerator = self.trainer.accelerator
        return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())

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
    def _limited_to(self, limits: list[int]):
        trainer = self.trainer
        settings, option = trainer.generation_config, "max_new_tokens"
        if trainer.use_vllm:
            settings, option = trainer.vllm_generation, "max_completion_length"
        most = getattr(settings, option)
        if trainer.use_vllm and self.collective:  # one process sets the limit of all, and knows its own rows only
            most = min(most, trainer.args.max_turn_tokens or most)
        else:
            most = min(most, max(limits))
        with replaced(settings, **{option: most}):
            yield

    @contextmanager
    def _generating(self, rows: list[int | None], contexts: list[list[int]], limits: list[int]):
        """While TRL generates, pass `model.generate` what TRL does not: limits by row, histories, a tokenizer."""
        if not self._in_transformers:
            yield
            return
        generate = partial(self.model.generate, stopping_criteria=StoppingCriteriaList([_RowLimits(limits)]))
        if self.protocol.stop_strings:
            generate = partial(generate, tokenizer=self.trainer._tokenizer)
        if self._history is not None:
            generate = partial(self._history.generate, generate, rows, contexts)
        with replaced(self.model, generate=generate):
            yield


class _RowLimits(StoppingCriteria):
    """Ends each row at its own number of tokens."""

    def __init__(self, limits: list[int]):
        self.limits = torch.tensor(limits)
        self.num_written = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.num_written += 1
        return (self.limits <= self.num_written).to(input_ids.device)


def _collective_backend(trainer: GRPOTrainer) -> str | None:
    """The backend in words if its generations are of all processes together."""
    if trainer.accelerator.num_processes == 1:
        return None
    sharded = "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if trainer.is_fsdp_enabled else None
    if not trainer.use_vllm:
        return sharded
    if trainer.vllm_mode == "server":
        return "a vLLM server"
    if trainer.vllm_tensor_parallel_size > 1:
        return "vLLM with tensor parallelism"
    # Weights that sleep are gathered and pushed again before each generation
    return f"vLLM's sleep mode with {sharded}" if trainer.args.vllm_enable_sleep_mode and sharded else None
