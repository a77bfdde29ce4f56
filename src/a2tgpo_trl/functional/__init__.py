"""Equations 2–7 of A²TGPO (arXiv 2605.06200) as pure functions of tensors.

Nothing here knows about trainers, models or tokenizers: the only import is torch.

Axes: `N` completions, rows of one prompt together (`num_generations` consecutive rows form a group); `K` turns, padded
with NaN; `B` completions of a batch; `T` completion tokens. Masks are 1 where a token counts.
"""

from .credit import (
    accumulate,
    adaptive_clip_scale,
    discounted_outcome,
    information_gain,
    normalize_groups,
    normalize_turn_groups,
    standardize,
    turn_advantages,
)
from .ratio import turn_level_old_logps, turn_log_ratio
from .turns import observation_ends, spread_turns, turn_ids

__all__ = [
    "turn_ids",
    "observation_ends",
    "spread_turns",
    "information_gain",
    "standardize",
    "normalize_turn_groups",
    "normalize_groups",
    "accumulate",
    "discounted_outcome",
    "turn_advantages",
    "adaptive_clip_scale",
    "turn_log_ratio",
    "turn_level_old_logps",
]
