"""Runs the tool calls of a turn. A call that fails becomes an error message to the model, not an error of the run."""

import asyncio
import atexit
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl.trainer.utils import shutdown_event_loop_in_daemon, start_event_loop_in_daemon


@dataclass(frozen=True)
class ToolResult:
    """What a call gave: the tool's return value, or the error."""

    name: str
    content: Any
    failed: bool = False

    def message(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, list) else str(self.content)
        return {"role": "tool", "name": self.name, "content": content}


class ToolExecutor:
    """
    Executes calls: synchronous tools in order, asynchronous ones of all rollouts together on one event loop.

    The order of the results is the order of the calls.
    """

    def __init__(self):
        self._loop = None

    def run(self, batch: list[tuple[list[dict[str, Any]], dict[str, Callable]]]) -> list[list[ToolResult]]:
        """
        Run the calls of one turn of several rollouts.

        Args:
            batch (`list`): For each rollout its calls, `{"type": "function", "function": {"name", "arguments"}}`, and
                its tools by name.

        Returns:
            `list[list[ToolResult]]`: for each rollout the results of its calls, in their order.
        """
        started = [[self._start(call, tools) for call in calls] for calls, tools in batch]
        waiting = [result for row in started for result in row if isinstance(result, _Waiting)]
        finished = iter(self._wait(waiting) if waiting else ())
        return [[next(finished) if isinstance(result, _Waiting) else result for result in row] for row in started]

    def _start(self, call: dict[str, Any], tools: dict[str, Callable]) -> "ToolResult | _Waiting":
        name = call.get("name", "unknown")
        try:
            if call["type"] != "function":
                raise ValueError(f"Unsupported tool call type: {call['type']}")
            name = call["function"]["name"]
            if name not in tools:
                raise ValueError(f"Tool {name} not found.")
            value = tools[name](**call["function"]["arguments"])
        except Exception as error:
            return _failure(name, error)
        return _Waiting(name, value) if inspect.isawaitable(value) else ToolResult(name, value)

    def _wait(self, waiting: list["_Waiting"]) -> list[ToolResult]:
        async def gather() -> list[Any]:
            return await asyncio.gather(*(result.awaitable for result in waiting), return_exceptions=True)

        values = asyncio.run_coroutine_threadsafe(gather(), self._event_loop()).result()
        return [
            _failure(result.name, value) if isinstance(value, BaseException) else ToolResult(result.name, value)
            for result, value in zip(waiting, values, strict=True)
        ]

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            thread, self._loop, ready = start_event_loop_in_daemon(name="a2tgpo-tools")
            ready.wait()
            atexit.register(shutdown_event_loop_in_daemon, thread, self._loop)
        return self._loop


@dataclass(frozen=True)
class _Waiting:
    name: str
    awaitable: Any


def _failure(name: str, error: BaseException) -> ToolResult:
    return ToolResult(name, {"error": str(error)}, failed=True)
