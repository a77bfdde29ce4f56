"""The multi-turn tool loop: generate a turn, parse its tool calls, execute them, append the observation, go on."""

from .generation.history import HistoryCache, why_no_history
from .generation.writers import BatchWriter, TurnWriter, WrittenTurn
from .limits import RolloutLimits
from .loop import Toolbox, ToolLoop
from .protocols.base import ToolProtocol, choose_protocol, why_no_chat_calls
from .protocols.chat import ChatProtocol
from .protocols.parsing import raising_value_errors
from .protocols.tags import TagProtocol
from .rollout import Rollout, StopReason, Turn, read_rollouts
from .tools.calls import EndRollout, ToolCall, ToolResult, ToolReward
from .tools.environments import STATE_KEY, add_answers, with_named_resets, without_state_keys
from .tools.executor import ToolExecutor, not_thread_safe

__all__ = [
    "STATE_KEY",
    "BatchWriter",
    "ChatProtocol",
    "EndRollout",
    "HistoryCache",
    "Rollout",
    "RolloutLimits",
    "StopReason",
    "TagProtocol",
    "ToolCall",
    "ToolExecutor",
    "ToolLoop",
    "ToolProtocol",
    "ToolResult",
    "ToolReward",
    "Toolbox",
    "Turn",
    "TurnWriter",
    "WrittenTurn",
    "add_answers",
    "why_no_chat_calls",
    "choose_protocol",
    "why_no_history",
    "not_thread_safe",
    "raising_value_errors",
    "read_rollouts",
    "with_named_resets",
    "without_state_keys",
]
