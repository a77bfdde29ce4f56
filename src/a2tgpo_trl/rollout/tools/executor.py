"""Runs the tool calls of all rollouts at once. What goes wrong in a call becomes its result, not an error of the run.

The threads and the event loop are not anyio's: its worker threads get calls and hand back results through an event loop,
so that while an asynchronous tool blocks it, no synchronous call starts or delivers its result. Its portal, an event
loop for other threads, holds up whoever closes it, or garbage collection, for as long as the loop is blocked.
"""

import asyncio
import inspect
import math
import queue
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .calls import ToolCall, ToolResult, argument_error, with_integers
from .event_loop import EventLoop
from .lanes import Lanes
from .results import failure, raised, returned
from .workers import WorkerPool

Tool = TypeVar("Tool", bound=Callable)

POLL_SECONDS = 0.1
"""How long `collect` waits without a look at the clock; some platforms handle no signal while a thread waits."""


def not_thread_safe(tool: Tool) -> Tool:
    """Decorates a tool of which no two calls may run at once, whatever rollouts and instances they belong to."""
    getattr(tool, "__func__", tool).thread_safe = False
    return tool


class ToolExecutor:
    """
    Executes tool calls: synchronous tools on worker threads, asynchronous ones on an event loop in a thread of its own.

    All calls run at once, but for two kinds that wait for each other, in the order of the calls: methods of the same
    environment, and tools marked [`not_thread_safe`]. Calls progress whether or not anybody waits for them; deadlines
    are watched by [`~ToolExecutor.collect`], and a call that took too long has failed even if nobody watched.

    A call that timed out is abandoned: Python cannot stop a thread, so it runs on beside its successors, and its result
    is ignored. A task is cancelled. A coroutine that blocks the event loop is left behind with it, and those that had
    not begun are moved to a new one.

    To be used by one thread. Its own threads end when it is garbage collected, and hold up neither that nor the end of
    the interpreter.

    Args:
        concurrency (`int`): Synchronous calls that run at once at most. Asynchronous calls are not bounded.
        timeout (`float`, *optional*): Seconds that a call may run, time in a queue not counted; `None` is no limit.
        max_abandoned (`int`): Abandoned calls that may still be running.
        initializer (`Callable`, *optional*): Called in each new thread before any tool.
    """

    def __init__(
        self,
        concurrency: int = 32,
        timeout: float | None = 30.0,
        max_abandoned: int = 128,
        initializer: Callable[[], None] | None = None,
    ):
        self._timeout = math.inf if timeout is None else timeout
        self._max_abandoned = max_abandoned
        self._broken_threads: list[BaseException] = []
        self._initializer = _recording(initializer or _nothing, self._broken_threads)
        self._workers = WorkerPool(concurrency, self._initializer)
        weakref.finalize(self, self._workers.close)
        self._loop: EventLoop | None = None
        self._lost_loops: list[EventLoop] = []
        self._turns: set[_Turn] = set()
        self._finished: queue.SimpleQueue[_Turn] = queue.SimpleQueue()
        # What follows is shared by all threads
        self._lock = threading.RLock()
        self._lanes = Lanes()
        self._awaited: set[_Execution] = set()
        self._running: set[_Execution] = set()
        self._handed_over: dict[_Execution, float] = {}  # to the event loop, and when; not begun there

    @property
    def pending(self) -> int:
        """Rollouts submitted and not collected."""
        return len(self._turns)

    @property
    def num_abandoned(self) -> int:
        """Abandoned calls that still run. An event loop that was left behind counts as one, whatever is in it."""
        with self._lock:
            on_their_own = sum(execution.loop not in self._lost_loops for execution in self._abandoned())
            return on_their_own + sum(loop.is_alive() for loop in self._lost_loops)

    def is_busy(self, environment: Any) -> bool:
        """Whether a call, abandoned or not, is still inside an environment."""
        with self._lock:
            return any(_environment_lane(environment) in execution.lanes for execution in self._running)

    def submit(
        self, key: Hashable, calls: list[ToolCall], tools: dict[str, Callable], environment: Any = None
    ) -> None:
        """
        Start the calls of one turn of one rollout, and return at once.

        Args:
            key (`Hashable`): By which [`~ToolExecutor.collect`] names the rollout.
            calls (`list[ToolCall]`): What the model wants.
            tools (`dict[str, Callable]`): The rollout's tools by name.
            environment (`Any`, *optional*): The object some of whose methods are among the tools.
        """
        turn = _Turn(key, [_refusal(call, tools) for call in calls])
        executions = [
            _execution(turn, i, call, tools[call.name], environment)
            for i, call in enumerate(calls)
            if turn.results[i] is None
        ]
        with self._lock:
            self._turns.add(turn)
            self._awaited.update(executions)
            if not executions:
                self._finished.put(turn)
            for execution in executions:
                if self._lanes.enter(execution):
                    self._launch(execution)

    def collect(self, timeout: float | None = None) -> list[tuple[Hashable, list[ToolResult]]]:
        """
        Wait until at least one rollout has all its results. Whatever is raised in here, pending calls are discarded.

        Args:
            timeout (`float`, *optional*): Seconds to wait at most.

        Returns:
            `list[tuple]`: key and results, in the order of the calls, of every rollout that is finished and was not
            collected; nothing if none is pending or the time is over.

        Raises:
            RuntimeError: If too many abandoned calls are running, or the initializer failed in a thread.
        """
        end = math.inf if timeout is None else time.perf_counter() + timeout
        turns: list[_Turn] = []
        try:
            while self._turns and not turns:
                wait = min(self._watch(), end - time.perf_counter())
                turns = self._take_finished(max(wait, 0.0))
                self._turns.difference_update(turns)
                if time.perf_counter() >= end:
                    break
        except BaseException:
            self.discard()
            raise
        return [(turn.key, turn.results) for turn in turns]

    def discard(self) -> None:
        """Forget everything that is pending: what is queued never starts, what runs is abandoned."""
        with self._lock:
            for execution in list(self._awaited):
                self._awaited.remove(execution)
                if execution in self._running:
                    self._abandon(execution)
                else:
                    self._lanes.leave(execution)
            self._handed_over.clear()
            self._finished = queue.SimpleQueue()
            self._turns.clear()

    # What the training thread does

    def _take_finished(self, wait: float) -> list["_Turn"]:
        try:
            turns = [self._finished.get(timeout=wait)]
        except queue.Empty:
            return []
        while not self._finished.empty():
            turns.append(self._finished.get())
        return turns

    def _watch(self) -> float:
        """Do what is due. Returns the seconds until there may be something again."""
        if self._broken_threads:
            error = self._broken_threads[0]
            raise RuntimeError(f"A thread for tools could not be set up: {error!r}.") from error
        with self._lock:
            now = time.perf_counter()
            for execution in self._awaited & self._running:
                seconds = now - execution.started
                if seconds >= self._timeout:
                    self._abandon(execution)
                    self._settle(execution, self._timed_out(execution, seconds))
            self._watch_event_loop(now)
            for execution in self._abandoned():
                self._fail_behind(execution)
            if self.num_abandoned > self._max_abandoned:
                raise RuntimeError(self._too_many_abandoned())
            deadlines = [execution.started + self._timeout for execution in self._awaited & self._running]
            return min([POLL_SECONDS, *(deadline - now for deadline in deadlines)])

    def _watch_event_loop(self, now: float) -> None:
        self._lost_loops = [loop for loop in self._lost_loops if loop.is_alive()]
        if self._loop is None:
            return
        # The loop may also be blocked by what a call has left there, which no deadline tells
        overdue = now - self._timeout - EventLoop.PATIENCE
        if self._loop.is_blocked() or any(since < overdue for since in self._handed_over.values()):
            lost, self._loop = self._loop, None
            self._lost_loops.append(lost)
            self._stop_if_lost_and_empty(lost)
            for execution in list(self._handed_over):
                self._hand_over(execution)

    def _fail_behind(self, execution: "_Execution") -> None:
        for lane in execution.lanes:
            for waiting in self._lanes.behind(execution, lane):
                name, (owner, _) = waiting.call.name, lane
                error = f"{name} was not run: the {owner} is still busy with a call that timed out."
                self._settle(waiting, replace(failure(name, error), timed_out=True))
                for successor in self._lanes.leave(waiting):
                    self._launch(successor)

    def _timed_out(self, execution: "_Execution", seconds: float) -> ToolResult:
        name = execution.call.name
        return replace(failure(name, f"{name} timed out after {self._timeout:g} s."), seconds=seconds, timed_out=True)

    def _too_many_abandoned(self) -> str:
        names = sorted({execution.call.name for execution in self._abandoned()})
        return (
            f"{self.num_abandoned} calls of {', '.join(names)} timed out and are still running, more than "
            f"max_abandoned_calls={self._max_abandoned}. Each holds a thread. Give the tool a time limit of its own, "
            f"shorter than tool_timeout={self._timeout:g}, at which it returns."
        )

    # The way of a call: launched → begun → ended, and settled when its result is known. All under the lock.

    def _launch(self, execution: "_Execution") -> None:
        if execution.is_async:
            self._hand_over(execution)
        else:
            self._workers.submit(self._run_in_thread, execution)

    def _hand_over(self, execution: "_Execution") -> None:
        if self._loop is None:
            self._loop = EventLoop(self._initializer)
            weakref.finalize(self, self._loop.stop)
        execution.loop = self._loop
        self._handed_over[execution] = time.perf_counter()
        self._loop.start(self._run_on_loop, execution, self._loop)

    def _abandon(self, execution: "_Execution") -> None:
        if execution.loop is None:
            self._workers.abandon(execution)
        else:
            execution.cancelled = time.perf_counter()
            execution.loop.cancel(execution.task)

    def _abandoned(self) -> list["_Execution"]:
        """Those that run and should not; a cancelled task is given the time to end."""
        latest = time.perf_counter() - EventLoop.PATIENCE
        return [
            execution
            for execution in self._running - self._awaited
            if execution.loop is None or execution.cancelled < latest
        ]

    def _settle(self, execution: "_Execution", result: ToolResult) -> None:
        self._awaited.remove(execution)
        turn = execution.turn
        turn.results[execution.index] = result
        if None not in turn.results:
            self._finished.put(turn)

    def _stop_if_lost_and_empty(self, loop: EventLoop | None) -> None:
        if loop in self._lost_loops and all(execution.loop is not loop for execution in self._running):
            loop.stop()

    # What worker threads and the event loop do

    def _run_in_thread(self, execution: "_Execution") -> None:
        name, result = execution.call.name, _interrupted(execution)
        if not self._begin(execution):
            return
        try:
            value = execution.tool(**execution.call.arguments)
            result = value if inspect.isawaitable(value) else returned(name, value)
        except BaseException as error:
            result = raised(name, error)
        finally:
            self._end(execution, result)

    async def _run_on_loop(self, execution: "_Execution", loop: EventLoop) -> None:
        name, result = execution.call.name, _interrupted(execution)
        if not self._begin(execution, loop):
            return
        try:
            awaitable = execution.awaitable
            if awaitable is None:
                awaitable = execution.tool(**execution.call.arguments)
            result = returned(name, await awaitable)
        except BaseException as error:
            result = raised(name, error)
        finally:
            self._end(execution, result)

    def _begin(self, execution: "_Execution", loop: EventLoop | None = None) -> bool:
        """Start the clock, unless the call was discarded or moved to another event loop."""
        with self._lock:
            if execution not in self._awaited or execution.loop is not loop:
                return False
            if loop is not None:
                del self._handed_over[execution]
                execution.task = asyncio.current_task()
            self._running.add(execution)
            execution.started = time.perf_counter() - execution.seconds
            return True

    def _end(self, execution: "_Execution", result: ToolResult | Awaitable) -> None:
        seconds = time.perf_counter() - execution.started
        with self._lock:
            self._running.remove(execution)
            if execution in self._awaited:
                if seconds >= self._timeout:
                    self._settle(execution, self._timed_out(execution, seconds))
                elif not isinstance(result, ToolResult):
                    execution.awaitable, execution.seconds = result, seconds
                    self._hand_over(execution)
                    return
                else:
                    self._settle(execution, replace(result, seconds=seconds))
            for successor in self._lanes.leave(execution):
                self._launch(successor)
            self._stop_if_lost_and_empty(execution.loop)


@dataclass(eq=False)
class _Turn:
    key: Hashable
    results: list[ToolResult | None]


@dataclass(eq=False)
class _Execution:
    """A call on its way. `seconds` and `awaitable` are what a synchronous tool left when it returned an awaitable."""

    turn: _Turn
    index: int
    call: ToolCall
    tool: Callable
    is_async: bool
    lanes: list[tuple[str, int]]
    started: float = -math.inf
    seconds: float = 0.0
    awaitable: Awaitable | None = None
    loop: EventLoop | None = None
    task: asyncio.Task | None = None
    cancelled: float = -math.inf


def _execution(turn: _Turn, index: int, call: ToolCall, tool: Callable, environment: Any) -> _Execution:
    lanes = []
    if environment is not None and getattr(tool, "__self__", None) is environment:
        lanes.append(_environment_lane(environment))
    if not getattr(tool, "thread_safe", True):
        lanes.append(("tool", id(getattr(tool, "__func__", tool))))
    call = replace(call, arguments=with_integers(tool, call.arguments))
    return _Execution(turn, index, call, tool, inspect.iscoroutinefunction(tool), lanes)


def _environment_lane(environment: Any) -> tuple[str, int]:
    return ("environment", id(environment))


def _refusal(call: ToolCall, tools: dict[str, Callable]) -> ToolResult | None:
    """Why a call is not executed, if it is not."""
    if call.error is not None:
        return failure(call.name, call.error)
    if call.name not in tools:
        return failure(call.name, f"Tool {call.name} not found.")
    try:
        error = argument_error(tools[call.name], call.arguments)
    except Exception as problem:
        return raised(call.name, problem)
    return None if error is None else failure(call.name, error)


def _interrupted(execution: _Execution) -> ToolResult:
    return failure(execution.call.name, "The call was interrupted.")


def _recording(initializer: Callable[[], None], errors: list[BaseException]) -> Callable[[], None]:
    """An initializer that never raises: an exception there would end the thread silently and leave its calls pending."""

    def initialize() -> None:
        try:
            initializer()
        except BaseException as error:
            errors.append(error)

    return initialize


def _nothing() -> None:
    pass
