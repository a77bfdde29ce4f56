"""The multi-turn tool loop: generate a turn, parse its tool calls, execute them, append the observation, go on."""

from .execute import ToolExecutor
from .loop import Rollout, RolloutLimits, run_tool_loop
from .protocol import ChatProtocol, TagProtocol, ToolProtocol, choose_protocol

__all__ = [
    "ChatProtocol",
    "Rollout",
    "RolloutLimits",
    "TagProtocol",
    "ToolExecutor",
    "ToolProtocol",
    "choose_protocol",
    "run_tool_loop",
]
