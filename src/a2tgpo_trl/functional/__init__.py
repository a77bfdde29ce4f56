"""Equations 2–7 of A²TGPO (arXiv 2605.06200), and those of its neighbours, as pure functions of tensors.

Nothing here knows about trainers, models or tokenizers: the only import is torch.

Axes: `N` completions, rows of one prompt together (`num_generations` consecutive rows form a group); `K` turns, padded
with NaN; `B` completions of a batch; `T` completion tokens. Masks are 1 where a token counts.
"""

from .advantage import explained_variance, generalized_advantages, value_loss, whiten
from .comparison import (
    COMPARISONS,
    comparison_sets,
    normalize_groups,
    normalize_turn_groups,
    set_sizes,
    standardize,
)
from .credit import (
    accumulate,
    adaptive_clip_scale,
    belief_progress,
    discounted_outcome,
    information_gain,
    turn_advantages,
    windowed_mean,
    with_outcome,
)
from .ratio import turn_level_old_logps, turn_log_ratio
from .tree import leaves_below, tree_values
from .turns import observation_ends, spread_turns, turn_ends, turn_ids, turn_starts

__all__ = [
    "COMPARISONS",
    "turn_ids",
    "turn_starts",
    "turn_ends",
    "observation_ends",
    "spread_turns",
    "information_gain",
    "belief_progress",
    "with_outcome",
    "comparison_sets",
    "set_sizes",
    "standardize",
    "normalize_turn_groups",
    "normalize_groups",
    "accumulate",
    "windowed_mean",
    "discounted_outcome",
    "generalized_advantages",
    "whiten",
    "value_loss",
    "explained_variance",
    "turn_advantages",
    "adaptive_clip_scale",
    "turn_log_ratio",
    "turn_level_old_logps",
    "leaves_below",
    "tree_values",
]
