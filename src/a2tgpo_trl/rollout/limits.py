"""When rollouts have to end."""

from dataclasses import dataclass

from .rollout import Rollout


@dataclass(frozen=True)
class RolloutLimits:
    """
    When a rollout has to end.

    Attributes:
        max_tool_turns (`int`): Rounds of tool calls.
        max_completion_length (`int`): Tokens of a completion, observations included. An observation that would exceed
            it is dropped, and the completion ends at its tool call; a turn that would exceed it is cut.
        max_model_length (`int`): Tokens of prompt and completion.
        max_turn_tokens (`int`, *optional*): Tokens of a turn of the model, which is cut there.
        max_observation_tokens (`int`, *optional*): Tokens of an observation, which is cut there, visibly.
    """

    max_tool_turns: int
    max_completion_length: int
    max_model_length: int
    max_turn_tokens: int | None = None
    max_observation_tokens: int | None = None

    def admits(self, rollout: Rollout, observation: list[int]) -> bool:
        completion = rollout.completion_length + len(observation)
        return (
            completion <= self.max_completion_length and len(rollout.prompt_ids) + completion < self.max_model_length
        )

    def room(self, rollout: Rollout) -> int:
        """Tokens that the next turn may have."""
        length = rollout.completion_length
        room = min(self.max_completion_length - length, self.max_model_length - len(rollout.prompt_ids) - length)
        return max(room if self.max_turn_tokens is None else min(room, self.max_turn_tokens), 0)
