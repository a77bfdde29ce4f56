"""How a model calls a tool: with its chat template's own calls, or with text tags."""

from abc import ABC, abstractmethod

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.chat_template_utils import add_response_schema, supports_tool_calling

from ...integrations.processors import tokenizer_of
from ..pictures import PictureReader, pictures_in
from ..tools.calls import ToolCall
from .contents import Message


class ToolProtocol(ABC):
    """
    Reads the turns that the model writes and writes the observations that it reads.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): The model's tokenizer, or its processor, with which tools
            may return pictures.
        eos_token_ids (`list[int]`, *optional*): Tokens that end a turn; default is the tokenizer's one.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`): The processor's, or the tokenizer itself.
        stop_strings (`list[str]`): Text that ends a turn too.
    """

    def __init__(
        self, processing_class: PreTrainedTokenizerBase | ProcessorMixin, eos_token_ids: list[int] | None = None
    ):
        self.processing_class = processing_class
        self.tokenizer = tokenizer_of(processing_class)
        self.pictures = PictureReader(processing_class) if isinstance(processing_class, ProcessorMixin) else None
        self.stop_strings: list[str] = []
        self._eos_token_ids = {self.tokenizer.eos_token_id} if eos_token_ids is None else set(eos_token_ids)

    @abstractmethod
    def read_turn(self, ids: list[int], prefix: list[int], schemas: list) -> tuple[Message, list[ToolCall]]:
        """
        Read what the model wrote, whatever it is.

        Args:
            ids (`list[int]`): The turn.
            prefix (`list[int]`): What the model read before it.
            schemas (`list`): The tools as they were shown to the model.

        Returns:
            `tuple[dict, list[ToolCall]]`: the assistant message, with its `tool_calls` if there are any, and its calls,
            among them one that cannot be read.
        """

    @abstractmethod
    def observe(self, messages: list[Message], max_tokens: int | None = None) -> tuple[list[Message], list[int]]:
        """
        Write tool results. Nothing in their texts is a control token or a tag to the model.

        Args:
            messages (`list[dict]`): The results of a turn's calls, as messages of the role `"tool"`.
            max_tokens (`int`, *optional*): Tokens of the whole observation: longer results are cut, visibly, and never within a
                picture.

        Returns:
            `tuple[list[dict], list[int]]`: the messages as the model reads them, and their tokens up to where the model
            goes on writing.
        """

    def check_pictures(self, messages: list[Message]) -> None:
        """
        Refuse pictures that cannot be read.

        Args:
            messages (`list[dict]`): The results of a turn's calls.

        Raises:
            TypeError: If there are some, and there is no processor.
        """
        if self.pictures is None and pictures_in(messages):
            name = next(message["name"] for message in messages if pictures_in([message]))
            raise TypeError(
                f"The tool {name!r} returned a picture, and processing_class is a tokenizer: pass the processor of a model for "
                "pictures, AutoProcessor.from_pretrained(...), or to the command --pictures; or let the tool return text."
            )

    def is_complete(self, ids: list[int]) -> bool:
        """Whether the model itself ended a turn, not a budget."""
        return bool(ids) and (ids[-1] in self._eos_token_ids or self._stops(ids))

    def cut_turn(self, ids: list[int]) -> int:
        """Number of tokens of a turn, what a backend left behind a stop string not counted."""
        if not self._stops(ids):
            return len(ids)
        shortest, longest = 1, len(ids)
        while shortest < longest:  # whether a prefix holds a stop string is monotone in its length
            middle = (shortest + longest) // 2
            shortest, longest = (shortest, middle) if self._stops(ids[:middle]) else (middle + 1, longest)
        return longest

    def after_turn(self, turn: list[int], observation: list[int]) -> list[int]:
        """
        The tokens of an observation that are still to follow a turn.

        Some templates (GLM-4's) begin observations with the token that ends a calling turn.
        """
        ended_by_it = turn[-1:] == observation[:1] and not self._eos_token_ids.isdisjoint(turn[-1:])
        return observation[1:] if ended_by_it else observation

    def completion(self, messages: list[Message]) -> list[Message] | str:
        """A completion in the form that reward functions get."""
        return messages

    def _stops(self, ids: list[int]) -> bool:
        if not self.stop_strings:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return any(string in text for string in self.stop_strings)


def choose_protocol(
    requested: str, processing_class: PreTrainedTokenizerBase | ProcessorMixin, conversational: bool
) -> str:
    """
    Pick the tool protocol.

    Args:
        requested (`str`): The option `tool_protocol`: `"auto"`, `"chat"` or `"tags"`.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Whose chat template decides.
        conversational (`bool`): Whether prompts are lists of messages.

    Returns:
        `str`: `"chat"` or `"tags"`.

    Raises:
        ValueError: If what is requested cannot work with this template and these prompts.
    """
    if conversational and processing_class.chat_template is None:
        raise ValueError(
            "Prompts are conversational, but the tokenizer has no chat template, so tools can be called neither by the "
            "template nor by tags. Set tokenizer.chat_template, or give prompts as plain text."
        )
    if requested == "tags":
        return "tags"
    reason = why_no_chat_calls(processing_class, conversational)
    if requested == "chat" and reason:
        raise ValueError(f"tool_protocol='chat' cannot be used: {reason}. Use tool_protocol='tags'.")
    return "tags" if reason else "chat"


def why_no_chat_calls(processing_class: PreTrainedTokenizerBase | ProcessorMixin, conversational: bool) -> str | None:
    """
    Why tools cannot be called through the chat template; `None` if they can.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): With the template; TRL's parser of its calls is set up if there is one.
        conversational (`bool`): Whether prompts are lists of messages.

    Returns:
        `str` or `None`: the reason, as the end of a sentence.
    """
    if not conversational:
        return "prompts are plain text, which no chat template renders"
    if not supports_tool_calling(processing_class):
        return "the chat template does not render tool calls"
    tokenizer = tokenizer_of(processing_class)
    if getattr(tokenizer, "response_template", None) is None and getattr(tokenizer, "response_schema", None) is None:
        try:
            add_response_schema(processing_class)
        except ValueError:
            return "TRL does not know the chat template and cannot parse its tool calls"
    return None
