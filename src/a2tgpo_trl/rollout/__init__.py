"""The multi-turn tool loop: generate a turn, parse its tool calls, execute them, append the observation, go on."""

from .calls import EndRollout, ToolCall, ToolResult
from .chat import ChatProtocol
from .environments import add_answers, with_named_resets
from .execute import ToolExecutor, not_thread_safe
from .history import HistoryCache, history_obstacle
from .loop import STOP_REASONS, Rollout, RolloutLimits, ToolLoop
from .parsing import raising_value_errors
from .protocol import ToolProtocol, chat_obstacle, choose_protocol
from .tags import TagProtocol

__all__ = [
    "STOP_REASONS",
    "ChatProtocol",
    "EndRollout",
    "HistoryCache",
    "Rollout",
    "RolloutLimits",
    "TagProtocol",
    "ToolCall",
    "ToolExecutor",
    "ToolLoop",
    "ToolProtocol",
    "ToolResult",
    "add_answers",
    "chat_obstacle",
    "choose_protocol",
    "history_obstacle",
    "not_thread_safe",
    "raising_value_errors",
    "with_named_resets",
]
