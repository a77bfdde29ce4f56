"""What is logged about rollouts, turns and their credit: pure functions of what all processes gathered."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from .estimators import TurnCredit
from .rollout import STOP_REASONS, ToolLoop


def credit_metrics(credit: TurnCredit, num_generations: int) -> dict[str, float]:
    """
    Metrics of a generation batch; see `docs/metrics.md` for what each one says. NaN where there is nothing to measure.

    Args:
        credit ([`TurnCredit`]): Of the completions of all processes.
        num_generations (`int`): Completions per prompt.

    Returns:
        `dict[str, float]`: metric by name.
    """
    gains, scored = credit.gains, ~credit.gains.isnan()  # (N, K)
    turn = torch.arange(gains.size(1), device=gains.device)
    exists = turn < credit.num_turns.unsqueeze(1)
    is_tool_turn = turn < credit.num_tool_turns.unsqueeze(1)
    group_sizes = (~credit.normalized.isnan()).unflatten(0, (-1, num_generations)).sum(1).flatten()
    group_sizes = group_sizes[group_sizes > 0].float()  # one entry per turn group
    turn_part = credit.advantages - credit.outcome_part
    last_belief = credit.beliefs.gather(1, credit.num_tool_turns.unsqueeze(1)).squeeze(1)
    metrics = {
        "turns/mean": credit.num_turns.float().mean(),
        "turns/max": credit.num_turns.float().max(),
        "turns/tool_mean": credit.num_tool_turns.float().mean(),
        "information_gain/mean": gains.nanmean(),
        "information_gain/std": (gains - gains.nanmean()).square().nanmean().sqrt(),
        "information_gain/positive": (gains[scored] > 0).float().mean(),
        "information_gain/unscorable_turns": (is_tool_turn & ~scored).sum().float(),
        "information_gain/normalized_abs_mean": credit.normalized.abs().nanmean(),
        "turn_group/size_mean": group_sizes.mean(),
        "turn_group/singletons": (group_sizes == 1).float().mean(),
        "advantages/outcome_abs_mean": credit.outcome.abs().mean(),
        "advantages/turn_part_abs_mean": turn_part[exists].abs().mean(),
        "clip_scale/min": _extreme(credit.clip_scale[exists], "min"),
        "clip_scale/mean": credit.clip_scale[exists].mean(),
        "clip_scale/max": _extreme(credit.clip_scale[exists], "max"),
        "belief/first": credit.beliefs[:, 0].nanmean(),
        "belief/last": last_belief.nanmean(),
    }
    for k, column in enumerate(gains.unbind(1)):
        if not column.isnan().all():
            metrics[f"information_gain/turn_{k}"] = column.nanmean()
    return dict(zip(metrics, torch.stack([value.float() for value in metrics.values()]).tolist(), strict=True))


def _extreme(values: Tensor, which: str) -> Tensor:
    return getattr(values, which)() if values.numel() else values.new_tensor(torch.nan)


def rows_of_turns(values: Tensor, num_turns: Tensor) -> list[list[float | None]]:
    """The turns there are, row by row, for a table; `None` where a turn has no value."""
    rows = zip(values.tolist(), num_turns.tolist(), strict=True)
    return [[None if math.isnan(value) else round(value, 4) for value in row[:length]] for row, length in rows]


def distinct(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """
    Names that can be keys: where one is there already, a number is appended.

    Args:
        names (`Sequence[str]`): Such as those of reward functions, of which lambdas and partials often share one.
        taken (`Collection[str]`): Names that are something else's.

    Returns:
        `list[str]`: in their order; the first of a name keeps it, unless it is taken.

    Example:

    ```python
    >>> distinct(["format", "format", "format_2"])
    ['format', 'format_3', 'format_2']

    ```
    """
    free, found = {name for name in names if name not in taken}, []
    for name in names:
        if name not in free:
            name = next(other for k in count(2) if (other := f"{name}_{k}") not in {*names, *taken, *found})
        free.discard(name)
        found.append(name)
    return found


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
        tokens_fed (`int`, *optional*): Tokens that the model read; `None` where the backend does not tell.
    """

    stop_reasons: list[str]
    tool_calls: list[tuple[str, bool, float | None]]
    num_generations: int
    num_abandoned: int
    num_tokens: int
    tokens_fed: int | None

    @classmethod
    def of(cls, loop: ToolLoop, num_abandoned: int, tokens_fed: int | None) -> "RolloutRecord":
        """The record of a loop that has been played."""
        names = {name for rollout in loop.rollouts for name in rollout.tools}  # a model can call what there is not
        return cls(
            stop_reasons=[rollout.stop_reason for rollout in loop.rollouts],
            tool_calls=[(r.name if r.name in names else "unknown", r.failed, r.seconds) for r in loop.results],
            num_generations=loop.num_generations,
            num_abandoned=num_abandoned,
            num_tokens=sum(len(rollout.context_ids) for rollout in loop.rollouts),
            tokens_fed=tokens_fed,
        )


def rollout_metrics(records: Sequence[RolloutRecord]) -> dict[str, float]:
    """
    Metrics of how a batch of rollouts was played; see `docs/metrics.md`. Tools that were not called are left out.

    Args:
        records (`Sequence[RolloutRecord]`): One of each process.

    Returns:
        `dict[str, float]`: metric by name.
    """
    reasons = [reason for record in records for reason in record.stop_reasons]
    metrics = {f"rollout/stop/{reason}": reasons.count(reason) / len(reasons) for reason in STOP_REASONS}
    metrics["rollout/generations"] = max(record.num_generations for record in records)
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
