"""The signal `"turn_rewards"`: what functions, process reward models and tools give each turn."""

import asyncio
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.trainer.utils import is_async_callable, start_event_loop_in_daemon

from ..batch import GenerationBatch
from ..records.tables import distinct
from .base import Signal, gather_turns
from .process_reward_model import ProcessRewardModel

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
        self.functions = [_as_function(function, trainer.accelerator.device) for function in given]
        self.names = distinct([function_name(function) for function in self.functions])
        self.weights = trainer.args.turn_reward_weights or [1.0] * len(given)
        self._loop: asyncio.AbstractEventLoop | None = None

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """Turn rewards, `(N, K)`; NaN where no function gave one."""
        given = self._call_all(batch)
        for name, rewards in zip(self.names, given, strict=True):
            for rollout, row in zip(batch.rollouts, rewards, strict=True):
                for turn, reward in zip(rollout.turns, row, strict=True):
                    turn.rewards[name] = reward
        # (F, B, K) on this process
        tables = torch.stack([_table(rewards, ends, self._is_trained_on(batch)) for rewards in given])
        gathered = torch.stack([gather_turns(batch, table, math.nan) for table in tables])  # (F, N, K)
        self._log(batch, gathered)
        weights = torch.tensor(self.weights, device=gathered.device).view(-1, 1, 1)
        total = (gathered * weights).nansum(dim=0).masked_fill(gathered.isnan().all(dim=0), math.nan)
        return {"turn_rewards": total}

    def _is_trained_on(self, batch: GenerationBatch) -> list[bool]:
        """Completions that are left out of training (`mask_truncated_completions`) have no turns there."""
        return (batch.tensors["turn_ids"] >= 0).any(dim=1).tolist()

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
        if self._loop is None:  # a notebook runs a loop in this thread already
            _, self._loop, ready = start_event_loop_in_daemon(name="a2tgpo-turn-rewards")
            ready.wait()

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*coroutines)

        return asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

    def _log(self, batch: GenerationBatch, rewards: Tensor) -> None:
        metrics = self.trainer._metrics[batch.mode]
        for name, table in zip(self.names, rewards, strict=True):
            metrics[f"turn_rewards/{name}/mean"].append(table.nanmean().item())
            for k, column in enumerate(table.unbind(1)):
                if not column.isnan().all():
                    metrics[f"turn_rewards/{name}/turn_{k}"].append(column.nanmean().item())


def function_name(function: Any) -> str:
    """What metrics and records call a function."""
    named = function.func if isinstance(function, functools.partial) else function
    return getattr(named, "__name__", type(named).__name__)


def _as_function(given: Any, device: torch.device) -> TurnRewardFunc:
    if isinstance(given, str | PreTrainedModel):
        given = ProcessRewardModel(given)
    if isinstance(given, ProcessRewardModel):
        given.model.to(device)
    return given


def checked(given: Any, batch: GenerationBatch, name: str) -> list[list[float | None]]:
    """
    What a turn reward function returned, with `None` for NaN and infinity.

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
    return number if math.isfinite(number) else None


def _columns(batch: GenerationBatch) -> dict[str, list[Any]]:
    """What functions get: turns, prompts, completions, and the columns of the dataset."""
    names = batch.rows[0].keys() - {"prompt", "completion"}
    return {name: [row[name] for row in batch.rows] for name in names} | {
        "turns": [rollout.turns for rollout in batch.rollouts],
        "prompts": [rollout.prompt for rollout in batch.rollouts],
        "completions": [rollout.completion for rollout in batch.rollouts],
    }


def _table(rewards: list[list[float | None]], ends: Tensor, is_trained_on: list[bool]) -> Tensor:
    """Rewards by rollout and turn, NaN where there is none, `(B, K)`."""
    table = torch.full(ends.shape, math.nan, device=ends.device)
    for i, row in enumerate(rewards):
        for k, reward in enumerate(row[: ends.size(1)] if is_trained_on[i] else []):
            if reward is not None:
                table[i, k] = reward
    return table
