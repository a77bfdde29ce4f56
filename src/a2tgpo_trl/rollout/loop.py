"""Turns: generate, parse, execute, observe, until the model answers or a limit is reached."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .execute import ToolExecutor
from .protocol import ToolProtocol

Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]
"""Contexts of token ids → the turn that the model writes after each, and its log-probabilities if the backend tells."""


@dataclass
class Rollout:
    """
    One completion as it grows, token in, token out: nothing that was generated is tokenised again.

    Attributes:
        prompt_ids (`list[int]`): The prompt.
        tools (`dict[str, Callable]`): The tools that this rollout may call, by name.
        schemas (`list`): The tools as they were shown to the model, which types the arguments of its calls.
        completion_ids (`list[int]`): Tokens so far, of the model and of observations.
        tool_mask (`list[int]`): 1 on the model's tokens, 0 on observations.
        logprobs (`list[float]`, *optional*): Sampling log-probabilities, 0 on observations.
        messages (`list[dict]`): The completion as messages: assistant turns, tool results.
    """

    prompt_ids: list[int]
    tools: dict[str, Callable]
    schemas: list
    completion_ids: list[int] = field(default_factory=list)
    tool_mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    pending_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def context_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    def add_turn(self, ids: list[int], logprobs: list[float] | None, protocol: ToolProtocol) -> None:
        """Append what the model wrote, and find the calls in it. A later turn cut to no tokens leaves no message."""
        self.pending_calls = []
        if ids or not self.messages:
            message = protocol.read_turn(ids, prefix=self.context_ids, schemas=self.schemas)
            self.messages.append(message)
            self.pending_calls = message.get("tool_calls") or []
        self.completion_ids = self.completion_ids + ids
        self.tool_mask = self.tool_mask + [1] * len(ids)
        if logprobs is not None:
            self.logprobs = (self.logprobs or []) + logprobs

    def add_observation(self, messages: list[dict[str, Any]], ids: list[int]) -> None:
        """Append the tokens of the tool results."""
        self.messages.extend(messages)
        self.completion_ids = self.completion_ids + ids
        self.tool_mask = self.tool_mask + [0] * len(ids)
        if self.logprobs is not None:
            self.logprobs = self.logprobs + [0.0] * len(ids)


@dataclass(frozen=True)
class RolloutLimits:
    """
    When a rollout has to end.

    Attributes:
        max_tool_turns (`int`): Rounds of tool calls.
        max_completion_length (`int`): Tokens of a completion, observations included. An observation that would exceed
            it is dropped, and the completion ends at its tool call; a turn that would exceed it is cut.
        max_model_length (`int`): Tokens of prompt and completion.
    """

    max_tool_turns: int
    max_completion_length: int
    max_model_length: int

    def admits(self, rollout: Rollout, observation: list[int]) -> bool:
        completion = len(rollout.completion_ids) + len(observation)
        return (
            completion <= self.max_completion_length and len(rollout.prompt_ids) + completion < self.max_model_length
        )

    def room(self, rollout: Rollout) -> int:
        return max(self.max_completion_length - len(rollout.completion_ids), 0)


def run_tool_loop(
    rollouts: list[Rollout],
    generate: Generate,
    protocol: ToolProtocol,
    executor: ToolExecutor,
    limits: RolloutLimits,
) -> tuple[int, int]:
    """
    Play rollouts, whose first turn is written, to their end. All that called a tool take their next turn together.

    Args:
        rollouts (`list[Rollout]`): Changed in place.
        generate (`Callable`): Writes the next turn of each context.
        protocol (`ToolProtocol`): Reads calls, writes observations.
        executor (`ToolExecutor`): Runs the calls.
        limits (`RolloutLimits`): When to end.

    Returns:
        `tuple[int, int]`: tool calls made, and how many of them failed.
    """
    num_calls = num_failures = tool_turns = 0
    active = [rollout for rollout in rollouts if rollout.pending_calls]
    while active and tool_turns < limits.max_tool_turns:
        results = executor.run([(rollout.pending_calls, rollout.tools) for rollout in active])
        num_calls += sum(map(len, results))
        num_failures += sum(result.failed for row in results for result in row)
        observed = []
        for rollout, row in zip(active, results, strict=True):
            messages = [result.message() for result in row]
            ids = protocol.observation_ids(messages)
            if limits.admits(rollout, ids):
                rollout.add_observation(messages, ids)
                observed.append(rollout)
        if not observed:
            break
        turns, logprobs = generate([rollout.context_ids for rollout in observed])
        for i, rollout in enumerate(observed):
            room = limits.room(rollout)
            rollout.add_turn(turns[i][:room], None if logprobs is None else logprobs[i][:room], protocol)
        active = [rollout for rollout in observed if rollout.pending_calls]
        tool_turns += 1
    return num_calls, num_failures
