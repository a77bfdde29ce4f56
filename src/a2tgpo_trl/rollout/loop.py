"""Turns: generate, parse, execute, observe, until the model answers or a limit is reached."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from .generation.writers import TurnWriter
from .limits import RolloutLimits
from .protocols.base import ToolProtocol
from .rollout import Rollout, StopReason
from .tools.calls import ToolResult
from .tools.environments import state_of
from .tools.executor import ToolExecutor


@dataclass(frozen=True)
class Toolbox:
    """
    What a rollout may call.

    Attributes:
        tools (`dict[str, Callable]`): By name.
        schemas (`list`): The tools as they were shown to the model, which types the arguments of its calls.
        environment (`Any`, *optional*): The rollout's own environment, whose methods run in the order of their calls.
        tells_state (`bool`): Whether the environment is asked what state it is in, after each observation.
    """

    tools: dict[str, Callable]
    schemas: list
    environment: Any = None
    tells_state: bool = False


INSTANT = 0.1
"""Seconds in which calls that were made together may end apart, and their rollouts still go on together."""

Agree = Callable[[int], int]
"""The maximum of a number over all processes, each of which calls it as often as the others."""


class ToolLoop:
    """
    Plays rollouts to their end. Tools run beside generation.

    Args:
        rollouts (`list[Rollout]`): Changed in place. They end with a turn, or with what the model reads before one.
        toolboxes (`list[Toolbox]`): What each of them may call.
        writer ([`~rollout.generation.writers.TurnWriter`]): Writes turns.
        protocol (`ToolProtocol`): Reads calls, writes observations.
        executor (`ToolExecutor`): Runs the calls.
        limits (`RolloutLimits`): When to end.
        watch (`Callable`, *optional*): Called with the number of rollouts that are over, whenever it may have changed.

    Attributes:
        results (`list[ToolResult]`): Of all calls.
        num_generations (`int`): How often rollouts were submitted to the writer.
    """

    def __init__(
        self,
        rollouts: list[Rollout],
        toolboxes: list[Toolbox],
        writer: TurnWriter,
        protocol: ToolProtocol,
        executor: ToolExecutor,
        limits: RolloutLimits,
        watch: Callable[[int], None] = lambda finished: None,
    ):
        self.rollouts = rollouts
        self.toolboxes = toolboxes
        self.writer = writer
        self.protocol = protocol
        self.executor = executor
        self.limits = limits
        self.watch = watch
        self.results: list[ToolResult] = []
        self.num_generations = 0
        # Rollouts by their index
        self._calling: set[int] = set()
        self._called_at: dict[int, float] = {}  # the same for those that were written together
        self._ready: list[int] = []  # have read their tool results

    def play(self, rows: Iterable[int] | None = None) -> None:
        """
        Rollouts that have read their tool results take their next turn together once none is missing, or once they have
        waited as long as the writer has patience. What was missing then is not waited for again: a slow tool costs the
        others at most one such wait, and hardly any generation is made for a few rollouts that others were about to
        join. Rollouts that were written together also stay together if their tools are instant. Where the writer takes
        rollouts at any time, nobody waits.

        Args:
            rows (`Iterable[int]`, *optional*): Indices of the rollouts that are played. Default: all.
        """
        late: set[int] = set()
        with self._executing(rows):
            ready_since = perf_counter()
            while self._ready or self.writer.pending or self.executor.pending:
                if not self._ready and not self.writer.pending:
                    self._observe(None)
                    ready_since = perf_counter()
                elif (left := self._time_to_wait(ready_since, late)) > 0:
                    self._observe(left)
                else:
                    self._observe(0.0)  # what was done while this thread slept is not late
                    late = set(self._calling)
                    if self._ready:
                        self._submit(len(self._ready))
                    self._read_turns()
                    self._observe(0.0)
                    ready_since = perf_counter()

    def play_in_lockstep(self, agree: Agree, rows: Iterable[int] | None = None) -> None:
        """
        All rollouts that go on take their next turn together, and all processes generate equally often.

        Args:
            agree (`Callable`): Maximum over the processes.
            rows (`Iterable[int]`, *optional*): Indices of the rollouts that are played. Default: all.
        """
        with self._executing(rows):
            while True:
                while self.executor.pending:
                    self._observe(None)
                batch_size = agree(len(self._ready))
                if not batch_size:
                    break
                self._submit(batch_size)
                self._read_turns()

    def _time_to_wait(self, ready_since: float, late: set[int]) -> float:
        """Seconds that ready rollouts wait for others: as the writer has patience, and for those that called with them."""
        missing = self._calling - late
        if self.writer.patience is None or not missing:
            return 0.0
        called_together = {self._called_at.get(index) for index in self._ready}  # forks have called nothing
        ends = [self._called_at[index] + INSTANT for index in missing if self._called_at[index] in called_together]
        return max([ready_since + self.writer.patience, *ends]) - perf_counter()

    @contextmanager
    def _executing(self, rows: Iterable[int] | None):
        try:
            self._begin(range(len(self.rollouts)) if rows is None else rows)
            yield
        except BaseException:
            self.writer.discard()
            self.executor.discard()
            raise

    def _begin(self, indices: Iterable[int]) -> None:
        """Rollouts whose last turn calls something do so; those that read something last, if only the prompt, are ready."""
        calling = []
        for index in indices:
            rollout = self.rollouts[index]
            if rollout.turns and not rollout.turns[-1].results:
                calling.append(index)
            elif rollout.stop_reason is None:
                self._ready.append(index)
        self._call_tools(calling)

    def _call_tools(self, indices: Iterable[int]) -> None:
        now = perf_counter()
        for index in indices:
            rollout, toolbox = self.rollouts[index], self.toolboxes[index]
            if rollout.stop_reason:
                continue
            if rollout.num_tool_turns < self.limits.max_tool_turns:
                self._calling.add(index)
                self._called_at[index] = now
                self.executor.submit(index, rollout.turns[-1].calls, toolbox.tools, toolbox.environment)
            else:
                rollout.stop_reason = StopReason.MAX_TURNS
        self._report()

    def _report(self) -> None:
        self.watch(sum(rollout.stop_reason is not None for rollout in self.rollouts))

    def _observe(self, timeout: float | None) -> None:
        """Append the results of rollouts whose calls are finished, after waiting for one at most `timeout` seconds."""
        for index, results in self.executor.collect(timeout):
            self._calling.remove(index)
            self.results.extend(results)
            rollout = self.rollouts[index]
            rollout.turns[-1].results = results
            messages = [result.message() for result in results]
            messages, ids = self.protocol.observe(messages, self.limits.max_observation_tokens)
            ids = self.protocol.after_turn(rollout.turns[-1].ids, ids)
            if any(result.ends_rollout for result in results):
                rollout.add_observation(messages, [])
                rollout.stop_reason = StopReason.TOOL_STOP
            elif not self.limits.admits(rollout, ids):
                rollout.stop_reason = StopReason.OVERLONG_OBSERVATION
            else:
                rollout.add_observation(messages, ids)
                rollout.turns[-1].state = self._state(self.toolboxes[index])
                if self.limits.room(rollout):
                    self._ready.append(index)
                else:
                    rollout.stop_reason = StopReason.LENGTH
        self._report()

    def _state(self, toolbox: Toolbox) -> str | None:
        """What a rollout's environment says of its state, unless a call that was abandoned is still in it."""
        if not toolbox.tells_state or self.executor.is_busy(toolbox.environment):
            return None
        return state_of(toolbox.environment)

    def _submit(self, batch_size: int) -> None:
        indices, self._ready = sorted(self._ready), []
        rollouts = [self.rollouts[index] for index in indices]
        contexts = [rollout.context_ids for rollout in rollouts]
        rooms = [max(self.limits.room(rollout), 1) for rollout in rollouts]  # a prompt may fill the model's context
        self.writer.submit(indices, contexts, rooms, batch_size)
        self.num_generations += 1

    def _read_turns(self) -> None:
        turns = self.writer.collect()
        for turn in turns:
            schemas = self.toolboxes[turn.index].schemas
            self.rollouts[turn.index].add_turn(turn.ids, turn.logprobs, self.protocol, schemas)
        self._call_tools([turn.index for turn in turns])
