"""Turn reward functions: a number, or `None`, for each turn of each rollout."""

from typing import Any


def tool_reward(turns: list[list[Any]], **columns: Any) -> list[list[float | None]]:
    """Reward turns by what their tools gave them.

    Args:
        turns (`list[list[Turn]]`):
            The turns of each rollout.
        **columns:
            The dataset's columns, which are not used.

    Returns:
        `list[list[float | None]]`: for each turn the sum of the rewards that its calls returned with a `ToolReward`; `None`
        where none did.

    Example:
        >>> from a2tgpo_trl.rollout import ToolResult, Turn
        >>> paid = Turn([1], {"content": "<search>Lyon</search>"}, results=[ToolResult("search", "…", reward=0.5)])
        >>> tool_reward([[paid, Turn([2], {"content": "Paris"})]])
        [[0.5, None]]
    """
    given = [[[r.reward for r in turn.results if r.reward is not None] for turn in rollout] for rollout in turns]
    return [[sum(rewards) if rewards else None for rewards in rollout] for rollout in given]


def format_penalty(turns: list[list[Any]], penalty: float = -0.1, **columns: Any) -> list[list[float | None]]:
    """Punish turns that break the format (GTPO, arXiv 2511.14846): the first has to call a tool, and calls have to be readable.

    Args:
        turns (`list[list[Turn]]`):
            The turns of each rollout.
        penalty (`float`, *optional*, defaults to -0.1):
            What such a turn gets. For another value give `functools.partial(format_penalty, penalty=…)`.
        **columns:
            The dataset's columns, which are not used.

    Returns:
        `list[list[float | None]]`: the penalty or 0 for each turn.

    Example:
        >>> from a2tgpo_trl.rollout import ToolCall, Turn
        >>> searches = Turn([1], {"content": "<search>Lyon</search>"}, calls=[ToolCall("search", {"query": "Lyon"})])
        >>> answers = Turn([2], {"content": "Paris"})
        >>> format_penalty([[searches, answers], [answers]])
        [[0.0, 0.0], [-0.1]]
    """
    return [
        [penalty if _breaks_the_format(turn, is_first=k == 0) else 0.0 for k, turn in enumerate(rollout)]
        for rollout in turns
    ]


def _breaks_the_format(turn: Any, is_first: bool) -> bool:
    return (is_first and not turn.calls) or any(call.error is not None for call in turn.calls)
