"""Rollouts and their credit → rows of turn records."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..credit import TurnCredit, Turns
from ..functional import leaves_below
from ..rollout import Rollout, ToolCall, ToolResult
from ..rollout.protocols.contents import holds_pictures, in_words
from .schema import SCHEMA
from .tables import as_json, encodable
from .thumbnails import Thumbnails

Decode = Callable[[list[list[int]]], list[str]]


def turn_rows(
    rollouts: Sequence[Rollout], first: int, num_generations: int, decode: Decode, thumbnail_px: int = 0
) -> list[dict[str, Any]]:
    """
    A row for each turn, without `step` and `batch`.

    Args:
        rollouts (`Sequence[Rollout]`): With their rewards and credit; a column that [`SCHEMA`] does not name is the
            estimator's own.
        first (`int`): Number of the first rollout in the batch of all processes.
        num_generations (`int`): Rollouts of a group.
        decode (`Callable`): Texts of lists of tokens, see [`PictureReader.decode`] where there are pictures.
        thumbnail_px (`int`): Longest side of the thumbnails of their pictures, in pixels; 0 keeps none.

    Returns:
        `list[dict]`: by column of [`SCHEMA`].
    """
    prompts = {tuple(rollout.prompt_ids) for rollout in rollouts}
    pieces = [ids for rollout in rollouts for turn in rollout.turns for ids in (turn.ids, turn.observation_ids)]
    texts = iter(decode([*map(list, prompts), *pieces]))
    prompts = {ids: next(texts) for ids in prompts}
    rows, thumbnails = [], Thumbnails(thumbnail_px)
    for i, rollout in enumerate(rollouts, first):
        shared = {
            "group": i // num_generations,
            "generation": i % num_generations,
            "num_turns": len(rollout.turns),
            "prompt": prompts[tuple(rollout.prompt_ids)],
            "answer": rollout.answer and encodable(rollout.answer),
            "reward": rollout.reward,
            "rewards": rollout.rewards,
            "stop_reason": rollout.stop_reason and rollout.stop_reason.value,
        }
        for k, turn in enumerate(rollout.turns):
            text, observation = next(texts), next(texts)
            rows.append(
                shared
                | {
                    "turn": k,
                    "text": text,
                    "num_tokens": len(turn.ids),
                    "observation": observation if turn.observation_ids else None,
                    "num_observation_tokens": len(turn.observation_ids),
                    "calls": [_call(*call) for call in zip(turn.calls, turn.results, strict=False)],
                }
                | thumbnails.columns(prompt_images=rollout.images, images=turn.images)
                | ({"turn_rewards": turn.rewards} if turn.rewards else {})
                | {name: value for name, value in turn.credit.items() if name in SCHEMA.names}
                | {"estimator_columns": {name: v for name, v in turn.credit.items() if name not in SCHEMA.names}}
            )
    return rows


def credit_columns(turns: Turns, credit: TurnCredit, epsilon: tuple[float, float]) -> dict[str, Tensor]:
    """
    The credit of completions, by column of [`SCHEMA`].

    Args:
        turns ([`Turns`]): Of the completions of all processes.
        credit ([`TurnCredit`]): Their credit.
        epsilon (`tuple[float, float]`): The clip range, below and above 1.

    Returns:
        `dict[str, Tensor]`: of shape `(N, K)`, NaN where a turn has no value; the estimator's own columns too, by their names.
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
        columns |= {"belief_before": turns.belief_before, "belief_after": turns.signals["beliefs"][:, 1:]}
        columns["information_gain"] = turns.information_gain
    if "turn_rewards" in turns.signals:
        columns["turn_reward"] = turns.signals["turn_rewards"]
    if "nodes" in turns.signals:
        columns |= _tree_columns(turns)
    columns |= credit.columns
    if "normalized_gain" in credit.columns:
        normalized = credit.columns["normalized_gain"]
        columns["turn_group_size"] = _members(~normalized.isnan(), turns.num_generations)
    return columns


def _tree_columns(turns: Turns) -> dict[str, Tensor]:
    nodes = turns.signals["nodes"]
    is_turn = nodes >= 0
    columns = {
        "node": nodes,
        "parent": torch.cat([torch.full_like(nodes[:, :1], -1), nodes[:, :-1]], dim=1),
        "depth": torch.arange(turns.max_turns, device=nodes.device).expand_as(nodes),
        "leaves_below": leaves_below(nodes, turns.num_generations),
    }
    numbers = {name: values.double().where(is_turn & (values >= 0), math.nan) for name, values in columns.items()}
    return numbers | {"surprisal": turns.signals["surprisals"]}


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
    """A cell of the answer column as text: the first of several aliases that is not empty."""
    aliases = value if isinstance(value, (list, tuple)) else [value]
    return next((str(alias) for alias in aliases if alias is not None and str(alias).strip()), None)


def _call(call: ToolCall, result: ToolResult) -> dict[str, Any]:
    content = in_words(result.content) if holds_pictures(result.content) else result.content
    return {
        "name": encodable(call.name),
        "arguments": as_json(call.arguments),
        "result": encodable(content) if isinstance(content, str) else as_json(content),
        "failed": result.failed,
        "seconds": result.seconds,
    }
