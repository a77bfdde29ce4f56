"""What is logged about rollouts, turns and their credit: pure functions of what all processes gathered."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..credit import TurnCredit, Turns
from ..functional import explained_variance
from ..rollout import StopReason, ToolLoop


def credit_metrics(turns: Turns, credit: TurnCredit) -> dict[str, float]:
    """
    Metrics of a generation batch; see `docs/metrics.md` for what each one says. NaN where there is nothing to measure.

    Args:
        turns ([`Turns`]): Of all processes.
        credit ([`TurnCredit`]): Their credit.

    Returns:
        `dict[str, float]`: metric by name; those of beliefs and clip ranges where the estimator has such.
    """
    metrics = _turn_metrics(turns, credit)
    if "beliefs" in turns.signals:
        metrics |= _belief_metrics(turns)
    if credit.value_targets is not None:
        values = turns.signals["values"][:, :-1]
        metrics["critic/explained_variance"] = explained_variance(values, credit.value_targets)
    for name, values in credit.columns.items():
        metrics |= _gain_metrics(values, turns) if name == "normalized_gain" else {f"{name}/mean": values.nanmean()}
    return dict(zip(metrics, torch.stack([value.float() for value in metrics.values()]).tolist(), strict=True))


def _turn_metrics(turns: Turns, credit: TurnCredit) -> dict[str, Tensor]:
    metrics = {
        "turns/mean": turns.num_turns.float().mean(),
        "turns/max": turns.num_turns.float().max(),
        "turns/tool_mean": turns.num_tool_turns.float().mean(),
        "advantages/outcome_abs_mean": turns.outcome.abs().mean(),
    }
    exists = torch.arange(turns.max_turns, device=turns.outcome.device) < turns.num_turns.unsqueeze(1)  # (N, K)
    if credit.advantages.dim() == 2:
        outcome_part = turns.outcome.unsqueeze(1) if credit.outcome_part is None else credit.outcome_part
        turn_part, mixed = (credit.advantages - outcome_part).abs(), turns.mixed.unsqueeze(1)
        metrics |= {
            "advantages/turn_part_abs_mean": turn_part[exists].mean(),
            "advantages/turn_part_abs_mean_mixed": turn_part[exists & mixed].mean(),
            "advantages/turn_part_abs_mean_equal": turn_part[exists & ~mixed].mean(),
        }
    if credit.clip_scale is not None:
        scales = credit.clip_scale[exists]
        metrics |= {
            "clip_scale/min": _extreme(scales, "min"),
            "clip_scale/mean": scales.mean(),
            "clip_scale/max": _extreme(scales, "max"),
        }
    return metrics


def _belief_metrics(turns: Turns) -> dict[str, Tensor]:
    beliefs = turns.signals["beliefs"]
    gains = turns.information_gain
    scored = ~gains.isnan()  # (N, K)
    is_tool_turn = torch.arange(turns.max_turns, device=gains.device) < turns.num_tool_turns.unsqueeze(1)
    metrics = {
        "information_gain/mean": gains.nanmean(),
        "information_gain/std": (gains - gains.nanmean()).square().nanmean().sqrt(),
        "information_gain/positive": (gains[scored] > 0).float().mean(),
        "information_gain/unscorable_turns": (is_tool_turn & ~scored).sum().float(),
        "information_gain/outcome_correlation": _correlation(gains, turns.outcome),
        "belief/first": beliefs[:, 0].nanmean(),
        "belief/last": beliefs.gather(1, turns.num_tool_turns.unsqueeze(1)).squeeze(1).nanmean(),
    }
    for k, column in enumerate(gains.unbind(1)):
        if not column.isnan().all():
            metrics[f"information_gain/turn_{k}"] = column.nanmean()
    return metrics


def _gain_metrics(normalized: Tensor, turns: Turns) -> dict[str, Tensor]:
    sizes = (~normalized.isnan()).unflatten(0, (-1, turns.num_generations)).sum(1).flatten()
    sizes = sizes[sizes > 0].float()  # one entry per turn group
    return {
        "information_gain/normalized_abs_mean": normalized.abs().nanmean(),
        "turn_group/size_mean": sizes.mean(),
        "turn_group/singletons": (sizes == 1).float().mean(),
    }


def _correlation(gains: Tensor, outcome: Tensor) -> Tensor:
    """Of what the turns of a rollout gained together with its outcome advantage, over the rollouts that gained something."""
    scored = ~gains.isnan().all(dim=1)
    pair = torch.stack([gains.nansum(dim=1)[scored], outcome[scored]])  # (2, M)
    return nn.functional.cosine_similarity(*(pair - pair.mean(dim=1, keepdim=True)), dim=0, eps=0.0)


def turn_table(turns: Turns, credit: TurnCredit) -> dict[str, Tensor]:
    """
    Columns of the completions table with a value for each turn, those that the estimator gives.

    Args:
        turns ([`Turns`]): Of all processes.
        credit ([`TurnCredit`]): Their credit.

    Returns:
        `dict[str, Tensor]`: of shape `(N, K)`, by name.
    """
    table = {}
    if "beliefs" in turns.signals:
        table["information_gain"] = turns.information_gain
    if "turn_rewards" in turns.signals:
        table["turn_reward"] = turns.signals["turn_rewards"]
    table |= credit.columns
    if credit.advantages.dim() == 2:
        table["turn_advantages"] = credit.advantages
    if credit.clip_scale is not None:
        table["clip_scale"] = credit.clip_scale
    return table


def _extreme(values: Tensor, which: str) -> Tensor:
    return getattr(values, which)() if values.numel() else values.new_tensor(torch.nan)


def rows_of_turns(values: Tensor, num_turns: Tensor) -> list[list[float | None]]:
    """The turns there are, row by row, for a table; `None` where a turn has no value."""
    rows = zip(values.tolist(), num_turns.tolist(), strict=True)
    return [[None if math.isnan(value) else round(value, 4) for value in row[:length]] for row, length in rows]


@dataclass(frozen=True)
class RolloutRecord:
    """
    What a process did to play its rollouts.

    Attributes:
        stop_reasons (`list[str]`): Of each rollout.
        tool_calls (`list[tuple]`): For each call the tool, whether it failed, and the seconds it ran or `None`.
        num_generations (`int`): Calls of the generation backend after the first turn.
        num_abandoned (`int`): Calls that were abandoned and still run.
        num_tokens (`int`): Tokens of all prompts and completions.
        num_generated (`int`): Tokens that the model wrote; those of a turn that rollouts share once.
        num_turns (`int`): Turns of all rollouts.
        shared_turns (`list`): Of each rollout the number of turns that it shares with an earlier one of its tree; `None` if the tree
            began with it, or there is no tree.
        tokens_fed (`int`, *optional*): Tokens that the model read; `None` where the backend does not tell.
    """

    stop_reasons: list[str]
    tool_calls: list[tuple[str, bool, float | None]]
    num_generations: int
    num_abandoned: int
    num_tokens: int
    num_generated: int
    num_turns: int
    shared_turns: list[int | None]
    tokens_fed: int | None

    @classmethod
    def of(cls, loop: ToolLoop, num_abandoned: int, tokens_fed: int | None) -> "RolloutRecord":
        """The record of a loop that has been played."""
        names = {name for toolbox in loop.toolboxes for name in toolbox.tools}  # a model can call what there is not
        return cls(
            stop_reasons=[rollout.stop_reason for rollout in loop.rollouts],
            tool_calls=[(r.name if r.name in names else "unknown", r.failed, r.seconds) for r in loop.results],
            num_generations=loop.num_generations,
            num_abandoned=num_abandoned,
            num_tokens=sum(len(rollout.context_ids) for rollout in loop.rollouts),
            num_generated=sum(len(turn.ids) for rollout in loop.rollouts for turn in rollout.written_turns),
            num_turns=sum(len(rollout.turns) for rollout in loop.rollouts),
            shared_turns=[rollout.num_shared_turns for rollout in loop.rollouts],
            tokens_fed=tokens_fed,
        )


def rollout_metrics(records: Sequence[RolloutRecord], trees: bool = False) -> dict[str, float]:
    """
    Metrics of how a batch of rollouts was played; see `docs/metrics.md`. Tools that were not called are left out.

    Args:
        records (`Sequence[RolloutRecord]`): One of each process.
        trees (`bool`): Whether the rollouts are leaves of trees.

    Returns:
        `dict[str, float]`: metric by name.
    """
    reasons = [reason for record in records for reason in record.stop_reasons]
    metrics = {f"rollout/stop/{reason}": reasons.count(reason) / len(reasons) for reason in StopReason}
    metrics["rollout/generations"] = max(record.num_generations for record in records)
    metrics["rollout/generated_tokens"] = sum(record.num_generated for record in records) / len(reasons)
    if trees:
        metrics |= _tree_metrics(records)
    if all(record.tokens_fed is not None for record in records):
        fed = sum(record.tokens_fed for record in records)
        metrics["rollout/tokens_fed"] = fed / len(reasons)
        metrics["rollout/tokens_fed_ratio"] = fed / sum(record.num_tokens for record in records)
    metrics["tools/abandoned"] = sum(record.num_abandoned for record in records)
    by_tool = defaultdict(list)
    for record in records:
        for name, failed, seconds in record.tool_calls:
            by_tool[name].append((failed, seconds))
    for name, calls in sorted(by_tool.items()):
        metrics[f"tools/{name}/calls"] = len(calls)
        metrics[f"tools/{name}/failures"] = sum(failed for failed, _ in calls)
        if latencies := [seconds for _, seconds in calls if seconds is not None]:
            metrics[f"tools/{name}/latency_median"] = float(np.median(latencies))
            metrics[f"tools/{name}/latency_p95"] = float(np.quantile(latencies, 0.95))
            metrics[f"tools/{name}/latency_max"] = max(latencies)
    return metrics


def _tree_metrics(records: Sequence[RolloutRecord]) -> dict[str, float]:
    shared = [number for record in records for number in record.shared_turns]
    forks = [number for number in shared if number is not None]
    return {
        "tree/leaves_per_chain": len(shared) / sum(not number for number in shared),
        "tree/fork_depth": sum(forks) / len(forks) if forks else math.nan,
        "tree/shared_turns": sum(forks) / sum(record.num_turns for record in records),
    }
