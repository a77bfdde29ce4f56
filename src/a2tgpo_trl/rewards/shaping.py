"""Outcome rewards of failed rollouts, shaped by how near they came to those of their group that passed."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any


def similarity_shaped(
    reward: Callable[..., list[float | None]], similarity: Callable[[str, str], float], weight: float = 0.5
) -> Callable[..., list[float | None]]:
    """Give failed rollouts a share of the reward, by their similarity to those that passed (GTPO, arXiv 2511.14846).

    A rollout passes with a reward of 1. One with less gets at least `weight` times the mean similarity of its text to those of the
    passing rollouts of the same prompt; without such it keeps its reward. The text of a rollout is what its model wrote in each
    turn, and then the name and the arguments of each call as JSON. Groups are compared within a process.

    Args:
        reward (`Callable`):
            A reward function, such as [`exact_match_reward`]; not a coroutine function.
        similarity (`Callable`):
            `(text, text)` → a number from 0 to 1, for example `difflib.SequenceMatcher`'s ratio.
        weight (`float`, *optional*, defaults to 0.5):
            What a failed rollout that is as good as a copy gets.

    Returns:
        `Callable`: a reward function of the same name.

    Raises:
        TypeError: If `reward` is a coroutine function.

    Example:
        >>> from a2tgpo_trl.rollout import Turn
        >>> def right(turns, **columns):
        ...     return [float(rollout[-1].text == "Paris") for rollout in turns]
        >>> shaped = similarity_shaped(right, lambda left, right: float(left[0] == right[0]))
        >>> shaped(prompts=["Capital?"] * 3, turns=[[Turn([1], {"content": text})] for text in ("Paris", "Pau", "Rome")])
        [1.0, 0.5, 0.0]
    """
    if inspect.iscoroutinefunction(reward):
        raise TypeError(f"similarity_shaped takes a function, and {reward.__name__} is a coroutine function.")

    @functools.wraps(reward)
    def shaped(prompts: list[Any], turns: list[list[Any]], **columns: Any) -> list[float | None]:
        rewards = reward(prompts=prompts, turns=turns, **columns)
        texts = ["\n".join(map(_text_and_calls, rollout)) for rollout in turns]
        keys = [json.dumps(prompt, default=_pixels) for prompt in prompts]
        passing: dict[str, list[str]] = {}
        for key, given, text in zip(keys, rewards, texts, strict=True):
            if given is not None and given >= 1:
                passing.setdefault(key, []).append(text)

        def shape(given: float | None, key: str, text: str) -> float | None:
            models = passing.get(key)
            if given is None or given >= 1 or not models:
                return given
            return max(given, weight * sum(similarity(text, model) for model in models) / len(models))

        return [shape(*row) for row in zip(rewards, keys, texts, strict=True)]

    return shaped


def _pixels(value: Any) -> str:
    """What equal pictures have in common: every row has objects of its own."""
    if not hasattr(value, "getpalette"):
        return repr(value)
    return f"{value.mode} {value.size} {value.getpalette()} {hashlib.sha256(value.tobytes()).hexdigest()}"


def _text_and_calls(turn: Any) -> str:
    """What a turn says and calls: the calls of a chat template are not in its text."""
    calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
    return "\n".join(
        [turn.text, *(json.dumps(call, ensure_ascii=False, sort_keys=True, default=str) for call in calls)]
    )
