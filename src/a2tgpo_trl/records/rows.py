"""Rollouts and their credit → rows of turn records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..credit import TurnCredit, Turns
from ..functional import information_gain
from ..rollout.tools.calls import ToolCall, ToolResult
from .schema import SCHEMA
from .tables import as_json, encodable

Ids = list[int]
Decode = Callable[[list[Ids]], list[str]]


@dataclass(frozen=True)
class RecordedRollout:
    """
    A rollout of a group, as it was generated and rewarded.

    Attributes:
        prompt_ids, completion_ids (`list[int]`): Its tokens, without padding.
        tool_mask (`list[int]`, *optional*): 1 on the model's tokens; `None` if all of them are.
        answer (`str`, *optional*): The true answer.
        rewards (`dict[str, float]`): By the name of the function; NaN where it gave none.
        reward (`float`): Their weighted sum.
        calls (`list[list[tuple]]`): For each round of tool calls the calls with their results.
        stop_reason (`str`, *optional*): Why it ended.
    """

    prompt_ids: Ids
    completion_ids: Ids
    tool_mask: list[int] | None
    answer: str | None
    rewards: dict[str, float]
    reward: float
    calls: list[list[tuple[ToolCall, ToolResult]]] = field(default_factory=list)
    stop_reason: str | None = None


def turn_rows(
    rollouts: Sequence[RecordedRollout],
    credit: dict[str, list[list[float]]],
    first: int,
    num_generations: int,
    decode: Decode,
) -> list[dict[str, Any]]:
    """
    A row for each turn, without `step` and `batch`.

    Args:
        rollouts (`Sequence[RecordedRollout]`): `N` of them.
        credit (`dict`): Columns of credit, `N` lists each with a number for each turn; a NaN, or none, is null. Those that
            [`SCHEMA`] does not name are the estimator's own.
        first (`int`): Number of the first rollout in the batch of all processes.
        num_generations (`int`): Rollouts of a group.
        decode (`Callable`): Texts of lists of tokens.

    Returns:
        `list[dict]`: by column of [`SCHEMA`].
    """
    turns = [split_turns(rollout.completion_ids, rollout.tool_mask) for rollout in rollouts]
    prompts = {tuple(rollout.prompt_ids) for rollout in rollouts}
    pieces = [piece for row in turns for turn in row for piece in turn]
    texts = iter(decode([*map(list, prompts), *pieces]))
    prompts = {ids: next(texts) for ids in prompts}
    known = {name: column for name, column in credit.items() if name in SCHEMA.names}
    own = {name: column for name, column in credit.items() if name not in known}
    rows = []
    for i, rollout in enumerate(rollouts):
        shared = {
            "group": (first + i) // num_generations,
            "generation": (first + i) % num_generations,
            "num_turns": len(turns[i]),
            "prompt": prompts[tuple(rollout.prompt_ids)],
            "answer": rollout.answer and encodable(rollout.answer),
            "reward": rollout.reward,
            "rewards": rollout.rewards,
            "stop_reason": rollout.stop_reason,
        }
        for k, (written, observed) in enumerate(turns[i]):
            text, observation = next(texts), next(texts)
            rows.append(
                shared
                | {
                    "turn": k,
                    "text": text,
                    "num_tokens": len(written),
                    "observation": observation if observed else None,
                    "num_observation_tokens": len(observed),
                    "calls": [_call(*call) for call in rollout.calls[k]] if k < len(rollout.calls) else [],
                }
                | _numbers(known, i, k)
                | {"estimator_columns": _numbers(own, i, k)}
            )
    return rows


def split_turns(completion_ids: Ids, tool_mask: list[int] | None) -> list[tuple[Ids, Ids]]:
    """
    The tokens of each turn, and those of the observation after it.

    Args:
        completion_ids (`list[int]`): Tokens of a completion.
        tool_mask (`list[int]`, *optional*): 1 on the model's tokens; `None` if all of them are.

    Returns:
        `list[tuple]`: for each turn what the model wrote and what it read then, which may be nothing.
    """
    mask = tool_mask or [1] * len(completion_ids)
    turns: list[tuple[Ids, Ids]] = []
    for written, tokens in groupby(zip(mask, completion_ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in tokens]
        if written:
            turns.append((ids, []))
        elif turns:
            turns[-1] = (turns[-1][0], ids)
    return turns


def credit_columns(
    turns: Turns, credit: TurnCredit, local: slice, epsilon: tuple[float, float]
) -> dict[str, list[list[float]]]:
    """
    The credit of some completions, by column of [`SCHEMA`].

    Args:
        turns ([`Turns`]): Of the completions of all processes.
        credit ([`TurnCredit`]): Their credit.
        local (`slice`): Which of them.
        epsilon (`tuple[float, float]`): The clip range, below and above 1.

    Returns:
        `dict[str, list[list[float]]]`: for each completion a number for each turn, NaN where it has none; the estimator's
        own columns too, by their names.
    """
    outcome = turns.outcome.unsqueeze(1).expand(-1, turns.max_turns)  # (N, K)
    is_trained_on = torch.arange(turns.max_turns, device=outcome.device) < turns.num_turns.unsqueeze(1)
    advantages = {
        "advantage": credit.advantages if credit.advantages.dim() == 2 else credit.advantages.unsqueeze(1),
        "outcome_advantage": outcome if credit.outcome_part is None else credit.outcome_part,
    }
    columns: dict[str, Tensor] = {
        **{name: values.where(is_trained_on, math.nan) for name, values in advantages.items()},
        **_clip_ranges(credit, outcome, epsilon),
    }
    if "beliefs" in turns.signals:
        beliefs = turns.signals["beliefs"]
        columns |= {"belief_before": beliefs[:, :-1], "belief_after": beliefs[:, 1:]}
        columns["information_gain"] = information_gain(beliefs)
    columns |= credit.columns
    if "normalized_gain" in credit.columns:
        normalized = credit.columns["normalized_gain"]
        columns["turn_group_size"] = _members(~normalized.isnan(), turns.num_generations)
    return {name: values[local].tolist() for name, values in columns.items()}


def _clip_ranges(credit: TurnCredit, like: Tensor, epsilon: tuple[float, float]) -> dict[str, Tensor]:
    low, high = epsilon
    scale = credit.clip_scale
    if scale is None:
        constants = {"clip_scale": 1.0, "clip_low": 1 - low, "clip_high": 1 + high}
        return {name: like.new_full(like.shape, value) for name, value in constants.items()}
    return {"clip_scale": scale, "clip_low": 1 - low * scale, "clip_high": 1 + high * scale}


def _members(counted: Tensor, num_generations: int) -> Tensor:
    """For each turn that counts, how many of its (prompt, turn index) do; NaN elsewhere."""
    members = counted.unflatten(0, (-1, num_generations)).sum(1).repeat_interleave(num_generations, 0)
    return members.float().where(counted, math.nan)


def recorded_answer(value: Any) -> str | None:
    """A cell of the answer column as text: the first of several aliases that is not empty, which is the one that is scored."""
    aliases = value if isinstance(value, (list, tuple)) else [value]
    return next((str(alias) for alias in aliases if alias is not None and str(alias).strip()), None)


def _numbers(columns: dict[str, list[list[float]]], rollout: int, turn: int) -> dict[str, float | None]:
    return {name: _number(column[rollout], turn) for name, column in columns.items()}


def _number(values: list[float], turn: int) -> float | None:
    return values[turn] if turn < len(values) and not math.isnan(values[turn]) else None


def _call(call: ToolCall, result: ToolResult) -> dict[str, Any]:
    return {
        "name": encodable(call.name),
        "arguments": as_json(call.arguments),
        "result": encodable(result.content) if isinstance(result.content, str) else as_json(result.content),
        "failed": result.failed,
        "seconds": result.seconds,
    }
