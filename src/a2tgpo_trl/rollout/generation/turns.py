"""Turns of the model, on any of TRL's backends: where they end, how long they may be, and what was read before."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging
from trl import GRPOTrainer

from ...integrations.replaced import replaced
from ..pictures import Picture
from ..protocols.base import ToolProtocol
from .history import HistoryCache, why_no_history
from .joining import why_no_joining

logger = logging.get_logger(__name__)

Turns = tuple[list[list[int]], list[list[float]] | None]


class TurnGenerator:
    """
    Writes turns with the backend of a trainer.

    Args:
        trainer ([`~trl.GRPOTrainer`]): With its generation set up.
        protocol ([`~rollout.ToolProtocol`]): Says where turns end, and reads pictures; gets the stop strings that the user
            configured.

    Attributes:
        joins (`bool`): Whether rollouts join a running engine, see [`~rollout.generation.joining.EngineWriter`], instead of being
            written in batches.
        seconds (`float`): How long the last generation took.
        keeps_logprobs (`bool`): Whether `model.generate` keeps the log-probabilities of what it samples.
        tokens_fed (`int`, *optional*): Tokens that the model has read in this batch, padding not counted; `None` where
            the backend does not tell.
    """

    def __init__(self, trainer: GRPOTrainer, protocol: ToolProtocol):
        self.trainer = trainer
        self.protocol = protocol
        self.backend = trainer.backend
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.collective = self.backend.collective
        self.joins = False
        self.seconds = 0.0
        self.keeps_logprobs = False
        self._history = None
        self._tokens_read_again = 0
        self._without_pictures: tuple[list[int], list[Picture]] = [trainer._tokenizer.eos_token_id], []
        self._companion = self._without_pictures  # the context of rows that only take part, and its pictures
        protocol.stop_strings = self.backend.stop_at(protocol.stop_strings)
        if self.collective and not trainer.args.lockstep:
            logger.warning(
                f"All rollouts take their turns in lockstep: {self.collective} needs the same generations on all processes."
            )
        if self.backend.runs_engine and not (self.collective or trainer.args.lockstep):
            if reason := why_no_joining(self.backend.settings, trainer._is_vlm):
                logger.warning(f"Rollouts do not join a running batch of vLLM, but wait for its end: {reason}.")
            else:
                self.joins = True
        if self.backend.takes_row_options and trainer.args.reuse_history:
            if reason := why_no_history(self.model, trainer.generation_config):
                logger.warning(f"Each turn reads its whole history again: {reason}.")
            else:
                self._history = HistoryCache(self.model, share_prompts=not self.collective)

    @property
    def tokens_fed(self) -> int | None:
        if not self.backend.takes_row_options:
            return None
        return self._tokens_read_again if self._history is None else self._history.tokens_fed

    def clear(self) -> None:
        """Forget what was read: before a batch of rollouts, and after it."""
        self._tokens_read_again = 0
        self._companion = self._without_pictures
        if self.protocol.pictures is not None:
            self.protocol.pictures.forget()
        if self._history is not None:
            self._history.clear()

    def forget(self, rows: Iterable[int], kept: Iterable[Picture]) -> None:
        """
        Forget what was read of rollouts that are over.

        Args:
            rows (`Iterable[int]`): Which ones of the batch.
            kept (`Iterable[PIL.Image.Image]`): The pictures of the others.
        """
        if self.protocol.pictures is not None:
            self.protocol.pictures.forget([*kept, *self._companion[1]])
        if self._history is not None:
            self._history.drop(rows)

    def fork(self, source: int, row: int, length: int) -> None:
        """Let a rollout go on from the first tokens that another one has read."""
        if self._history is not None:
            self._history.fork(source, row, length)

    def write(
        self,
        generate: Callable[..., Turns],
        rows: Sequence[int],
        contexts: list[list[int]],
        pictures: Sequence[list[Picture]],
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
            pictures (`Sequence[list]`, length `B`): The pictures whose placeholders stand in each.
            max_tokens (`Sequence[int]`, length `B`): Tokens that each turn may have.
            batch_size (`int`): The largest `B` of all processes.
            num_generations (`int`): How often each context follows itself.

        Returns:
            `tuple`: for each context the turn's token ids; and their log-probabilities if the backend tells them.
        """
        start = perf_counter()
        size = len(contexts)
        missing = self._missing_rows(size, batch_size)
        rows = [*rows, *[None] * missing]
        if self.collective and self.backend.takes_row_options and not self._companion[1]:
            # The vision part of a model that is sharded runs on all processes or on none
            self._companion = next((pair for pair in zip(contexts, pictures, strict=True) if pair[1]), self._companion)
        context, shown = self._companion
        contexts, pictures = contexts + [context] * missing, [*pictures, *[shown] * missing]
        limits = [*max_tokens, *[1] * missing]
        sampled = _SampledLogprobs(self.trainer.temperature) if self._samples else None
        with self._limited_to(limits), self._generating(rows, contexts, limits, sampled):
            images, fields = self._read(contexts, pictures)
            ids, logprobs = generate(contexts, images, fields, num_generations)
        if sampled is not None and sampled.steps:
            logprobs = sampled.of_turns(ids)
        ends = [min(self.protocol.cut_turn(turn), limit) for turn, limit in zip(ids, limits, strict=True)]
        ids = [turn[:end] for turn, end in zip(ids, ends, strict=True)]
        if self._history is None:
            self._tokens_read_again += sum(map(len, contexts[:size]))
            self._tokens_read_again += sum(max(len(turn) - 1, 0) for turn in ids[:size])
        else:
            self._history.keep(ids)
        if logprobs is not None:
            logprobs = [turn[:end] for turn, end in zip(logprobs, ends, strict=True)][:size]
        self.seconds = perf_counter() - start
        return ids[:size], logprobs

    def _read(
        self, contexts: list[list[int]], pictures: Sequence[list[Picture]]
    ) -> tuple[list[list[Picture] | None] | None, dict[str, Any]]:
        """The pictures as vLLM takes them, and as `model.generate` does."""
        if self.protocol.pictures is None:
            return None, {}
        if self.backend.takes_row_options:
            return None, self.protocol.pictures.inputs(contexts, pictures)
        return ([row or None for row in pictures] if any(pictures) else None), {}

    @property
    def _samples(self) -> bool:
        return self.keeps_logprobs and self.backend.takes_row_options

    def _missing_rows(self, size: int, batch_size: int) -> int:
        """Rows that this process adds to a collective generation, so that it takes part."""
        if not self.collective:
            return 0
        return max((batch_size if self.backend.needs_equal_rows else min(batch_size, 1)) - size, 0)

    def agree(self, number: int) -> int:
        """The maximum over all processes where generation is collective, else the number itself."""
        if not self.collective:
            return number
        accelerator = self.trainer.accelerator
        return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())

    def _limited_to(self, limits: list[int]) -> AbstractContextManager:
        backend, most = self.backend, self.backend.max_tokens
        if self.collective and backend.one_limit_for_all:  # that process knows its own rows only
            return backend.limited_to(min(most, self.trainer.args.max_turn_tokens or most))
        return backend.limited_to(min(most, max(limits)))

    @contextmanager
    def _generating(
        self,
        rows: list[int | None],
        contexts: list[list[int]],
        limits: list[int],
        sampled: "_SampledLogprobs | None",
    ):
        """While TRL generates, pass `model.generate` what TRL does not: limits by row, histories, a tokenizer."""
        if not self.backend.takes_row_options:
            yield
            return
        criteria = StoppingCriteriaList([_RowLimits(limits)])
        generate = partial(self.model.generate, stopping_criteria=criteria)
        if sampled is not None:
            criteria.append(_Gather(sampled))
            generate = partial(generate, logits_processor=LogitsProcessorList([sampled]))
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


class _SampledLogprobs(LogitsProcessor):
    """
    Keeps log π of each sampled token, as TRL's forward has it: at the temperature, before top-k and the like, but after penalties
    such as `repetition_penalty`.

    Args:
        temperature (`float`): Of the sampling.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.steps: list[torch.Tensor] = []  # each (B,)
        self._logps: torch.Tensor | None = None  # (B, V), of the token to come

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._logps = (scores / self.temperature).log_softmax(dim=-1)
        return scores

    def gather(self, sampled: torch.Tensor) -> None:
        """Keep those of the tokens that were sampled, `(B,)`."""
        self.steps.append(self._logps.gather(1, sampled.unsqueeze(1)).squeeze(1))

    def of_turns(self, turns: list[list[int]]) -> list[list[float]]:
        """By row, of as many tokens as each turn has."""
        rows = torch.stack(self.steps, dim=1).tolist()
        return [row[: len(turn)] for row, turn in zip(rows, turns, strict=True)]


class _Gather(StoppingCriteria):
    """Ends no row: it is asked when a token has been sampled."""

    def __init__(self, logprobs: _SampledLogprobs):
        self.logprobs = logprobs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.logprobs.gather(input_ids[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
