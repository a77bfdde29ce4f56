"""Advantage estimators: how gains and outcomes become turn advantages and clip ranges."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import A2TGPOConfig
from .functional import (
    accumulate,
    adaptive_clip_scale,
    discounted_outcome,
    information_gain,
    normalize_groups,
    normalize_turn_groups,
    turn_advantages,
)


@dataclass(frozen=True)
class TurnCredit:
    """
    Credit of `N` completions with up to `K` turns; NaN where a turn has none.

    Attributes:
        beliefs (`Tensor`, shape `(N, K + 1)`): Belief at the prompt and after each observation.
        gains (`Tensor`, shape `(N, K)`): Information gain of each tool turn.
        normalized (`Tensor`, shape `(N, K)`): Normalised gains; NaN in completions without a reward too.
        outcome (`Tensor`, shape `(N,)`): Outcome advantages.
        outcome_part (`Tensor`, shape `(N, K)`): What they give each turn: IGPO discounts them by turn.
        advantages (`Tensor`, shape `(N, K)`): Turn advantages.
        clip_scale (`Tensor`, shape `(N, K)`): Factor of each turn's clip range.
        num_turns (`Tensor`, shape `(N,)`): Turns of each completion, answer turn included.
        num_tool_turns (`Tensor`, shape `(N,)`): Turns that an observation follows.
    """

    beliefs: Tensor
    gains: Tensor
    normalized: Tensor
    outcome: Tensor
    outcome_part: Tensor
    advantages: Tensor
    clip_scale: Tensor
    num_turns: Tensor
    num_tool_turns: Tensor


def assign_credit(
    beliefs: Tensor,
    outcome: Tensor,
    num_turns: Tensor,
    num_tool_turns: Tensor,
    unscored: Tensor,
    num_generations: int,
    args: A2TGPOConfig,
) -> TurnCredit:
    """
    Credit every turn of whole groups, by the estimator that `args` names: `"a2tgpo"` (equations 2–6) or `"igpo"`.

    Args:
        beliefs (`Tensor`, shape `(N, K + 1)`): Belief at the prompt and after each observation, NaN where absent.
        outcome (`Tensor`, shape `(N,)`): Outcome advantages.
        num_turns, num_tool_turns (`Tensor`, shape `(N,)`): As in [`TurnCredit`].
        unscored (`Tensor`, shape `(N,)`, bool): Completions without a reward. As TRL leaves them out of its baseline and
            gives them an outcome advantage of 0, their gains count for nobody, and they have no credit.
        num_generations (`int`): Completions per prompt, in consecutive rows.
        args ([`A2TGPOConfig`]): The options.

    Returns:
        [`TurnCredit`]
    """
    gains = information_gain(beliefs)
    if removes_rounding(args):
        outcome = without_rounding(outcome, unscored, num_generations)
    counted = gains.masked_fill(unscored.unsqueeze(1), torch.nan)
    if args.advantage_estimator == "igpo":
        normalized = normalize_groups(counted, num_generations)
        to_come = accumulate(normalized, args.turn_gamma, rescale=False)
        turn = torch.arange(gains.size(1), device=gains.device)
        tool_turns = torch.where(turn < num_tool_turns.unsqueeze(1), 0.0, torch.nan)  # the unscorable ones as well
        outcome_part = discounted_outcome(outcome, tool_turns, args.turn_gamma)
        advantages = outcome_part + to_come.nan_to_num()
        clip_scale = torch.ones_like(advantages)
    else:
        normalized = _normalize_within(counted, num_generations, args.turn_normalization)
        to_come = accumulate(normalized, args.turn_gamma, args.turn_rescale)
        outcome_part = outcome.unsqueeze(1).expand_as(gains)
        advantages = turn_advantages(outcome, to_come, args.turn_advantage_coef)
        clip_scale = adaptive_clip_scale(normalized, args.turn_clip_strength)
    return TurnCredit(
        beliefs, gains, normalized, outcome, outcome_part, advantages, clip_scale, num_turns, num_tool_turns
    )


def removes_rounding(args: A2TGPOConfig) -> bool:
    """Whether outcomes of groups with equal rewards are to be exactly 0."""
    return args.skip_empty_updates and args.multi_objective_aggregation == "sum_then_normalize"


def without_rounding(outcome: Tensor, unscored: Tensor, num_generations: int) -> Tensor:
    """
    Outcome advantages that are 0 in groups of equal rewards, completions without one left aside.

    There TRL's `reward - mean` can leave rounding, such as 1e-4 for eight rewards of 0.3: a gradient that is not exactly
    zero, which Adam would make a full step of.

    Args:
        outcome (`Tensor`, shape `(N,)`): Outcome advantages of whole groups.
        unscored (`Tensor`, shape `(N,)`): Completions that no reward function scored.
        num_generations (`int`): Completions per prompt, in consecutive rows.

    Returns:
        `Tensor`, shape `(N,)`
    """
    groups, aside = outcome.unflatten(0, (-1, num_generations)), unscored.unflatten(0, (-1, num_generations))
    lowest = groups.masked_fill(aside, torch.inf).amin(dim=1, keepdim=True)
    highest = groups.masked_fill(aside, -torch.inf).amax(dim=1, keepdim=True)
    equal = lowest == highest
    return groups.masked_fill(equal, 0.0).flatten()


def _normalize_within(gains: Tensor, num_generations: int, within: str) -> Tensor:
    if within == "none":
        return gains
    normalize = normalize_turn_groups if within == "turn_group" else normalize_groups
    return normalize(gains, num_generations)
