"""Treats NaN and infinite rewards as missing, with a warning."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from textwrap import shorten
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging
from trl.trainer.utils import is_async_callable

logger = logging.get_logger(__name__)


def marking_nan(reward_func: Callable) -> Callable:
    """
    The same reward function with infinity where it returns NaN, which TRL would take for `None`.

    Args:
        reward_func (`Callable`): A function, a coroutine function or a reward model, as TRL calls it.
    """
    if isinstance(reward_func, nn.Module):
        return _MarkingModel(reward_func)

    def call(**kwargs: Any) -> list:
        return _marked(reward_func(**kwargs))

    async def call_async(**kwargs: Any) -> list:
        return _marked(await reward_func(**kwargs))

    return wraps(reward_func)(call_async if is_async_callable(reward_func) else call)


def without_infinite(rewards: Tensor, local: slice, names: Sequence[str], prompts: Sequence[Any]) -> Tensor:
    """
    Rewards with NaN, TRL's form of `None`, where they are infinite; a warning names function and row.

    Args:
        rewards (`Tensor`, shape `(N, F)`): Of the completions of all processes, by function.
        local (`slice`): Which rows are this process's.
        names (`Sequence[str]`, length `F`): Of the functions.
        prompts (`Sequence`): Of the local rows.

    Returns:
        `Tensor`, shape `(N, F)`.
    """
    infinite = rewards.isinf()
    for name, rows in zip(names, infinite[local].unbind(1), strict=True):
        if found := rows.nonzero().flatten().tolist():
            logger.warning(
                f"Reward function {name!r} returned NaN or infinity for {len(found)} of {len(rows)} completions. They count as "
                f"if it had returned None. The first is completion {found[0]}, to {shorten(repr(prompts[found[0]]), 300)}."
            )
    return rewards.masked_fill(infinite, math.nan)


class _MarkingModel(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits.masked_fill(outputs.logits.isnan(), math.inf)
        return outputs


def _marked(rewards: Sequence[Any]) -> list:
    return [math.inf if _is_nan(reward) else reward for reward in rewards]


def _is_nan(reward: Any) -> bool:
    return reward is not None and bool(reward != reward)
