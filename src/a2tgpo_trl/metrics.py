"""What is logged about turns and their credit: pure functions of gathered `(N, K)` tensors."""

import math

import torch
from torch import Tensor

from .estimators import TurnCredit


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
    group_sizes = scored.unflatten(0, (-1, num_generations)).sum(1).flatten()
    group_sizes = group_sizes[group_sizes > 0].float()  # one entry per turn group
    turn_part = credit.advantages - credit.outcome.unsqueeze(1)
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
