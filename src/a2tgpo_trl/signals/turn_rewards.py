"""The signal `"turn_rewards"`: what functions, process reward models and tools give each turn."""

import asyncio
import atexit
import functools
import math
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.trainer.utils import is_async_callable, shutdown_event_loop_in_daemon, start_event_loop_in_daemon

from ..batch import GenerationBatch
from ..integrations.names import distinct
from .base import Signal, gather_turns, trained_turns
from .process_reward_model import ProcessRewardModel

logger = logging.get_logger(__name__)

TurnRewardFunc = Callable[..., Any]
"""`(turns, **columns)` → for each rollout a list with a number, or `None`, for each of its turns; may be a coroutine function."""


class TurnRewards(Signal):
    """
    The weighted sum of what turn reward functions give each turn.

    Args:
        trainer ([`A2TGPOTrainer`]): Its `turn_reward_funcs` are called, and its metrics get the mean of each, and its mean by turn
            index.
    """

    def __init__(self, trainer: GRPOTrainer):
        super().__init__(trainer)
        given = trainer.turn_reward_funcs
        self.functions = [self._as_function(function) for function in given]
        self.names = distinct([function_name(function) for function in self.functions])
        self.weights = trainer.args.turn_reward_weights or [1.0] * len(given)

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """Turn rewards, `(N, K)`; NaN where no function gave one."""
        given = self._call_all(batch)
        for name, rewards in zip(self.names, given, strict=True):
            _tell_turns(batch, rewards, name)
        num_turns = trained_turns(batch)
        table = torch.stack([_table(rewards, num_turns, ends.size(1)) for rewards in given], dim=2)  # (B, K, F)
        gathered = gather_turns(batch, table.to(ends.device), math.nan)  # (N, K, F)
        for name, number in zip(self.names, gathered.isinf().sum(dim=(0, 1)).tolist(), strict=True):
            self.trainer._metrics[batch.mode][f"turn_rewards/{name}/non_finite"].append(float(number))
        gathered = _without_infinite(gathered)
        self._log(batch, gathered)
        weights = torch.tensor(self.weights, device=gathered.device)
        total = (gathered * weights).nansum(dim=2).masked_fill(gathered.isnan().all(dim=2), math.nan)
        return {"turn_rewards": _without_infinite(total)}  # a sum can overflow

    def _as_function(self, given: Any) -> TurnRewardFunc:
        if isinstance(given, str | PreTrainedModel):
            given = ProcessRewardModel(given)
        if isinstance(given, ProcessRewardModel):
            given.to(self.trainer.accelerator.device)
            given = functools.partial(given, decode=self._decode)
        return given

    def _decode(self, ids: list[int]) -> str:
        """All that the policy wrote in a turn, without the token that ended it."""
        written = [token for token in ids if token not in self.trainer.eos_token_ids]
        return self.trainer._tokenizer.decode(written, clean_up_tokenization_spaces=False)

    def _call_all(self, batch: GenerationBatch) -> list[list[list[float | None]]]:
        """By function, rollout and turn. Coroutine functions run at once, the others one after another."""
        columns = _columns(batch) | {"trainer_state": self.trainer.state}
        waiting = {i: function for i, function in enumerate(self.functions) if is_async_callable(function)}
        given: dict[int, Any] = {}
        for i, function in enumerate(self.functions):
            if i not in waiting:
                with profiling_context(self.trainer, self.names[i]):
                    given[i] = function(**columns)
        if waiting:
            given |= zip(waiting, self._await([function(**columns) for function in waiting.values()]), strict=True)
        return [checked(given[i], batch, self.names[i]) for i in range(len(self.functions))]

    def _await(self, coroutines: list[Any]) -> list[Any]:
        """In a loop of another thread, for a notebook runs one in this thread: TRL's where the trainer has one."""
        loop = self.trainer.async_loop if self.trainer._has_async_funcs else _event_loop()

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*coroutines)

        return asyncio.run_coroutine_threadsafe(all_of_them(), loop).result()

    def _log(self, batch: GenerationBatch, rewards: Tensor) -> None:
        metrics = self.trainer._metrics[batch.mode]
        means = torch.cat([rewards.nanmean(dim=(0, 1)).unsqueeze(0), rewards.nanmean(dim=0)])  # (1 + K, F)
        for name, (mean, *by_turn) in zip(self.names, means.T.tolist(), strict=True):
            metrics[f"turn_rewards/{name}/mean"].append(mean)
            for k, value in enumerate(by_turn):
                if not math.isnan(value):
                    metrics[f"turn_rewards/{name}/turn_{k}"].append(value)


def function_name(function: Any) -> str:
    """What metrics and records call a function."""
    named = function.func if isinstance(function, functools.partial) else function
    return getattr(named, "__name__", type(named).__name__)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One of the process, started when a trainer first needs it; it ends with the process, as TRL's do."""
    thread, loop, ready = start_event_loop_in_daemon(name="a2tgpo-turn-rewards")
    ready.wait()
    atexit.register(shutdown_event_loop_in_daemon, thread, loop)
    return loop


def functions_of(given: Any) -> list[Any]:
    """What is given as `turn_reward_funcs`, one or several or none, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def checked(given: Any, batch: GenerationBatch, name: str) -> list[list[float | None]]:
    """
    What a turn reward function returned, with infinity for NaN and for what float32 cannot hold.

    Args:
        given (`Any`): What it returned.
        batch ([`GenerationBatch`]): With its rollouts.
        name (`str`): Of the function.

    Raises:
        ValueError: If there is not a list for each rollout with a number or `None` for each turn.
    """
    expected = f"a list for each of the {len(batch.rollouts)} rollouts"
    try:
        rows = [list(row) for row in given]
    except TypeError:
        raise ValueError(
            f"The turn reward function {name!r} returned {type(given).__name__}: return {expected}."
        ) from None
    if len(rows) != len(batch.rollouts):
        raise ValueError(f"The turn reward function {name!r} returned {len(rows)} lists: return {expected}.")
    for i, (row, rollout) in enumerate(zip(rows, batch.rollouts, strict=True)):
        if len(row) != len(rollout.turns):
            raise ValueError(
                f"The turn reward function {name!r} returned {len(row)} rewards for rollout {i}, which has {len(rollout.turns)} "
                "turns: return one for each turn, None where there is none."
            )
    return [[_number(reward, name) for reward in row] for row in rows]


def _number(reward: Any, name: str) -> float | None:
    if reward is None:
        return None
    try:
        number = float(reward)
    except (TypeError, ValueError):
        raise ValueError(
            f"The turn reward function {name!r} returned {reward!r} for a turn: return a number, or None."
        ) from None
    return number if abs(number) <= _LARGEST else math.inf


_LARGEST = torch.finfo(torch.float32).max


def _without_infinite(rewards: Tensor) -> Tensor:
    return rewards.masked_fill(rewards.isinf(), math.nan)


def _tell_turns(batch: GenerationBatch, rewards: list[list[float | None]], name: str) -> None:
    """Write the rewards of a function into the turns, `None` for infinity, of which a warning names the first."""
    broken = []
    for i, (rollout, row) in enumerate(zip(batch.rollouts, rewards, strict=True)):
        for k, (turn, reward) in enumerate(zip(rollout.turns, row, strict=True)):
            is_broken = reward is not None and math.isinf(reward)
            broken += [(i, k)] * is_broken
            turn.rewards[name] = None if is_broken else reward
    if broken:
        rollout, turn = broken[0]
        logger.warning(
            f"Turn reward function {name!r} returned NaN, infinity or what float32 cannot hold for {len(broken)} turns. They count as "
            f"if it had returned None. The first is turn {turn} of rollout {rollout}, to "
            f"{shorten(repr(batch.rollouts[rollout].prompt), 300)}."
        )


def _columns(batch: GenerationBatch) -> dict[str, list[Any]]:
    """What functions get: turns, prompts, completions, and the columns of the dataset."""
    names = batch.rows[0].keys() - {"prompt", "completion"}
    return {name: [row[name] for row in batch.rows] for name in names} | {
        "turns": [rollout.turns for rollout in batch.rollouts],
        "prompts": [rollout.prompt for rollout in batch.rollouts],
        "completions": [rollout.completion for rollout in batch.rollouts],
    }


def _table(rewards: list[list[float | None]], num_turns: list[int], width: int) -> Tensor:
    """Rewards by rollout and turn, NaN where there is none or the turn is not trained on, `(B, K)` on the CPU."""
    rows = []
    for given, trained in zip(rewards, num_turns, strict=True):
        row = [math.nan if reward is None else reward for reward in given[:trained]]
        rows.append(row + [math.nan] * (width - len(row)))
    return torch.tensor(rows)
