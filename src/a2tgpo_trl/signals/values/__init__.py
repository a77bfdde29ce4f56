"""The signal `"values"`: what a critic expects of the rest of a rollout before each turn, and how the critic learns."""

from .critic import Critic
from .signal import Values, value_places

__all__ = ["Critic", "Values", "value_places"]
