"""Reward functions: of answers for whole completions, and of turns."""

from .answers import (
    exact_match,
    exact_match_reward,
    extract_answer,
    f1_reward,
    format_reward,
    normalize_answer,
    token_f1,
)
from .shaping import similarity_shaped
from .turns import format_penalty, tool_reward

__all__ = [
    "exact_match",
    "exact_match_reward",
    "extract_answer",
    "f1_reward",
    "format_penalty",
    "format_reward",
    "normalize_answer",
    "similarity_shaped",
    "token_f1",
    "tool_reward",
]
