"""[`Rollout`]: one completion with its turns, from the first token to its credit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from .pictures import Picture, pictures_in
from .protocols.base import Message, ToolProtocol
from .tools.calls import ToolCall, ToolResult


class StopReason(StrEnum):
    """Why a rollout ended; see `docs/rollout.md`."""

    ANSWERED = "answered"
    """A turn without a call, which the model itself ended."""
    MAX_TURNS = "max_turns"
    """A call after as many rounds of calls as are allowed."""
    LENGTH = "length"
    """A turn that a limit of tokens cut, or no room for another."""
    OVERLONG_OBSERVATION = "overlong_observation"
    """Results for which there was no room."""
    TOOL_STOP = "tool_stop"
    """A tool said [`EndRollout`]."""


@dataclass
class Turn:
    """
    What the model wrote, called, and read then.

    Attributes:
        ids (`list[int]`): Tokens of the turn.
        message (`dict`): The turn as an assistant message.
        calls (`list[ToolCall]`): What it wants to call, among them what cannot be read; empty where a `rollout_func` gave
            text, which does not say.
        results (`list[ToolResult]`): What its calls gave, in their order; empty if they were not executed.
        observed (`list[dict]`): The results as tool messages, as the model reads them or, after [`EndRollout`], would; empty
            if there was no room.
        observation_ids (`list[int]`): Tokens that the model reads after the turn.
        state (`str`, *optional*): What the environment's `state_key()` said then, where states are asked for.
        surprisal (`float`, *optional*): Mean of -log π over its tokens, in nats, where the backend tells log-probabilities.
        node (`int`, *optional*): Number of the turn in the tree of its prompt; equal numbers in rollouts of a group are the same
            turn.
        rewards (`dict[str, float | None]`): By turn reward function.
        credit (`dict[str, float | None]`): What the turn earned, by column of turn records: `advantage`, `clip_scale`, with
            beliefs `information_gain`, the estimator's own columns; `None` where the turn has no value.
        images (`list[PIL.Image.Image]`): Pictures whose placeholders stand in `observation_ids`, in their order.
    """

    ids: list[int] = field(repr=False)
    message: Message
    calls: list[ToolCall] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    observed: list[Message] = field(default_factory=list, repr=False)
    observation_ids: list[int] = field(default_factory=list, repr=False)
    state: str | None = None
    surprisal: float | None = None
    node: int | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    credit: dict[str, float | None] = field(default_factory=dict)
    images: list[Picture] = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        """What the model wrote, without what a chat template's parser takes out: calls, and thinking."""
        return text_of(self.message)

    @property
    def observation(self) -> str | None:
        """What `observed` says, without the markup around it; `None` if there is nothing."""
        return "\n".join(map(text_of, self.observed)) if self.observed else None


@dataclass
class Rollout:
    """
    One completion, token in, token out: nothing that was generated is tokenised again.

    Attributes:
        prompt_ids (`list[int]`): The prompt.
        turns (`list[Turn]`): What was written and read.
        leading_ids (`list[int]`): Tokens that the model read before its first turn, as a `rollout_func` may have it.
        logprobs (`list[float]`, *optional*): Sampling log-probabilities of the completion, 0 on observations.
        stop_reason (`StopReason`, *optional*): Why the rollout is over; `None` where nobody tells.
        state (`str`, *optional*): What the environment's `state_key()` said before the first turn.
        num_shared_turns (`int`, *optional*): In a tree, how many of its first turns were written for another rollout; `None` if it
            is one that the tree began with.
        prompt (`str` or `list[dict]`), completion (`str` or `list[dict]`): As reward functions get them.
        answer (`str`, *optional*): The true answer: the first alias.
        rewards (`dict[str, float]`): By reward function; NaN where it gave none.
        reward (`float`): Their weighted sum; NaN if none gave any.
        extra (`dict[str, Any]`): What reward functions logged of the completion by `log_extra`, by column.
        images (`list[PIL.Image.Image]`): Pictures whose placeholders stand in `prompt_ids`, in their order.
    """

    prompt_ids: list[int]
    turns: list[Turn] = field(default_factory=list)
    leading_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    stop_reason: StopReason | None = None
    state: str | None = None
    num_shared_turns: int | None = None
    prompt: str | list[Message] = ""
    completion: str | list[Message] = ""
    answer: str | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    reward: float = float("nan")
    extra: dict[str, Any] = field(default_factory=dict)
    images: list[Picture] = field(default_factory=list, repr=False)

    @property
    def completion_ids(self) -> list[int]:
        pieces = [ids for turn in self.turns for ids in (turn.ids, turn.observation_ids)]
        return [token for ids in (self.leading_ids, *pieces) for token in ids]

    @property
    def context_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    @property
    def completion_length(self) -> int:
        """Tokens of the completion."""
        return len(self.leading_ids) + sum(len(turn.ids) + len(turn.observation_ids) for turn in self.turns)

    @property
    def tool_mask(self) -> list[int]:
        """1 on the model's tokens, 0 on observations."""
        pieces = [(on, ids) for turn in self.turns for on, ids in ((1, turn.ids), (0, turn.observation_ids))]
        return [on for on, ids in [(0, self.leading_ids), *pieces] for _ in ids]

    @property
    def all_images(self) -> list[Picture]:
        """The pictures of prompt and observations, in the order in which their placeholders stand in `context_ids`."""
        return [*self.images, *(image for turn in self.turns for image in turn.images)]

    @property
    def messages(self) -> list[Message]:
        """The completion as messages: assistant turns, tool results."""
        return [message for turn in self.turns for message in (turn.message, *turn.observed)]

    @property
    def written_turns(self) -> list[Turn]:
        """The turns that were written for this rollout, and not for another one of its tree."""
        return self.turns[self.num_shared_turns or 0 :]

    @property
    def num_tool_turns(self) -> int:
        """Rounds of calls that were executed."""
        return sum(bool(turn.results) for turn in self.turns)

    def add_turn(
        self, ids: list[int], logprobs: list[float] | None, protocol: ToolProtocol, schemas: Sequence
    ) -> None:
        """Append what the model wrote, and find the calls in it. A later turn cut to no tokens is none."""
        calls = []
        if ids or not self.turns:
            message, calls = protocol.read_turn(ids, prefix=self.context_ids, schemas=schemas)
            known = [logprob for logprob in logprobs or [] if logprob is not None]  # TRL's word for a NaN of vLLM's
            self.turns.append(Turn(ids, message, calls, surprisal=-fmean(known) if known else None))
        if logprobs is not None:
            self.logprobs = (self.logprobs or []) + logprobs
        if not calls:
            self.stop_reason = StopReason.ANSWERED if protocol.is_complete(ids) else StopReason.LENGTH

    def add_observation(self, messages: list[Message], ids: list[int]) -> None:
        """Append what the model reads of its last turn's results."""
        turn = self.turns[-1]
        turn.observed, turn.observation_ids = messages, ids
        turn.images = pictures_in(messages) if ids else []
        if self.logprobs is not None:
            self.logprobs = self.logprobs + [0.0] * len(ids)


def text_of(message: Message) -> str:
    """The text of a message, whose content is a text, absent, or a list of blocks."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(block.get("text") or "" for block in content)


def read_rollouts(
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    tool_masks: Sequence[list[int]] | None,
    completions: Sequence[str | list[Message]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Rollout]:
    """
    Rollouts that another loop played, such as TRL's or a `rollout_func`, from what it returned.

    Args:
        prompt_ids, completion_ids (`Sequence[list[int]]`, length `B`): Tokens, without padding.
        tool_masks (`Sequence[list[int]]`, *optional*): 1 on the model's tokens; `None` if all of them are.
        completions (`Sequence`, length `B`): Texts or messages.
        tokenizer (`PreTrainedTokenizerBase`): Decodes turns of which no message tells.

    Returns:
        `list[Rollout]`: without stop reasons; with calls and results where messages tell of them.
    """
    rollouts = []
    for i, completion in enumerate(completions):
        leading_ids, pieces = split_turns(completion_ids[i], tool_masks[i] if tool_masks else None)
        told = _by_turn(completion)
        if len(told) != len(pieces):
            told = [_decoded(tokenizer, written, read) for written, read in pieces]
        turns = [
            Turn(
                written,
                message,
                _calls(message),
                list(map(_result, observed)),
                observed,
                read,
                images=pictures_in(observed),
            )
            for (written, read), (message, observed) in zip(pieces, told, strict=True)
        ]
        rollouts.append(Rollout(prompt_ids[i], turns, leading_ids))
    return rollouts


def split_turns(
    completion_ids: list[int], tool_mask: list[int] | None
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """
    The tokens before the first turn; and those of each turn, and of the observation after it.

    Args:
        completion_ids (`list[int]`): Tokens of a completion.
        tool_mask (`list[int]`, *optional*): 1 on the model's tokens; `None` if all of them are.

    Returns:
        `tuple`: what the model read before its first turn; and a list, for each turn what it wrote and what it read then, which
        may be nothing.
    """
    mask = [1] * len(completion_ids) if tool_mask is None else tool_mask
    leading: list[int] = []
    turns: list[tuple[list[int], list[int]]] = []
    for written, tokens in groupby(zip(mask, completion_ids, strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in tokens]
        if written:
            turns.append((ids, []))
        elif turns:
            turns[-1] = (turns[-1][0], ids)
        else:
            leading = ids
    return leading, turns


def _decoded(tokenizer: PreTrainedTokenizerBase, written: list[int], read: list[int]) -> tuple[Message, list[Message]]:
    """A turn and its observation as messages, from their tokens."""
    text = tokenizer.decode(written, skip_special_tokens=True)
    observed = [{"role": "tool", "content": tokenizer.decode(read, skip_special_tokens=True)}] if read else []
    return {"role": "assistant", "content": text}, observed


def _result(message: Message) -> ToolResult:
    """What a tool message tells of its call; errors look like TRL's and ours."""
    content = message.get("content")
    return ToolResult(str(message.get("name")), content, failed=str(content).startswith("{'error': "))


def _by_turn(completion: str | list[Message]) -> list[tuple[Message, list[Message]]]:
    """Each assistant message with those that follow it."""
    if isinstance(completion, str):
        return [({"role": "assistant", "content": completion}, [])]
    turns: list[tuple[Message, list[Message]]] = []
    for message in completion:
        if message.get("role") == "assistant":
            turns.append((message, []))
        elif turns:
            turns[-1][1].append(message)
    return turns


def _calls(message: Message) -> list[ToolCall]:
    functions = [call.get("function", call) for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    return [ToolCall(str(function.get("name")), function.get("arguments") or {}) for function in functions]
