"""What is refused of pictures, and of what else is no text."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin
from transformers.image_utils import is_pil_image
from trl.data_utils import is_conversational

from ..integrations.processors import PLACEHOLDERS, placeholder_of

COLUMNS = ("image", "images")
"""Of datasets, from which TRL takes pictures."""

ADDRESSES = ("url", "path", "base64")
"""Keys of a block of an image from which transformers loads one: from the network, from a file, or from text."""


def check_processor(processing_class: Any) -> None:
    """
    Refuse processors of families whose pictures this library does not know.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): As the trainer has it.

    Raises:
        TypeError: If it is of another family.
        ValueError: If it makes more than one picture of one.
    """
    if not isinstance(processing_class, ProcessorMixin):
        return
    if placeholder_of(processing_class) is None:
        raise TypeError(
            f"A2TGPOTrainer reads pictures with the processors {', '.join(PLACEHOLDERS)}, and {type(processing_class).__name__} is "
            "another one. To train on text, leave processing_class out, or pass the processor's tokenizer."
        )
    if getattr(processing_class.image_processor, "do_pan_and_scan", None):
        raise ValueError(
            "The image processor has do_pan_and_scan=True, which makes several pictures of one, and TRL tells them apart by their "
            "number: set processing_class.image_processor.do_pan_and_scan = False."
        )


def check_row(row: dict[str, Any], dataset: str, processing_class: Any) -> None:
    """
    Refuse the pictures of a dataset that cannot be read.

    Args:
        row (`dict`): Its first one.
        dataset (`str`): What to call it in an error.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): As the trainer has it.

    Raises:
        TypeError: If there is no processor for them, or they are no PIL images.
        ValueError: If there is something else than text and pictures in the prompt, pictures beside a prompt that is text, or an
            address in place of a picture.
    """
    columns, where = picture_columns(row), f"The first row of {dataset}"
    if columns and not isinstance(processing_class, ProcessorMixin):
        raise TypeError(
            f"{dataset} has the column {columns[0]!r}, and processing_class is a tokenizer: pass the processor of a model for pictures, "
            f"AutoProcessor.from_pretrained(...). Where the text is enough, remove it: dataset.remove_columns({columns[0]!r})."
        )
    if columns and not is_chat(row):
        raise ValueError(
            f"{dataset} has the column {columns[0]!r}, and its prompts are plain text, in which pictures have no place: give prompts as "
            "messages."
        )
    for picture in [row.get("image"), *(row.get("images") or [])]:
        if picture is not None:
            _check_picture(picture, where)
    _check_messages(row["prompt"] if is_chat(row) else [], where, processing_class)


def check_prompts(prompts: Sequence[str | list[dict[str, Any]]], processing_class: Any) -> None:
    """
    Refuse what is no text and no picture in the prompts of a batch.

    Args:
        prompts (`Sequence`): Texts or messages.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): As the trainer has it.

    Raises:
        TypeError: If there is no processor for pictures, or they are no PIL images.
        ValueError: If there is something else, or an address in place of a picture.
    """
    for prompt in prompts:
        _check_messages(prompt if isinstance(prompt, list) else [], "A prompt", processing_class)


def is_chat(row: dict[str, Any]) -> bool:
    """Whether the prompt of a row is a list of messages, whatever its other columns hold."""
    return "prompt" in row and is_conversational({"prompt": row["prompt"]})


def picture_columns(row: dict[str, Any]) -> list[str]:
    """The columns of a row from which TRL takes pictures."""
    return [column for column in COLUMNS if column in row]


def block_types(row: dict[str, Any]) -> list[Any]:
    """The types of the blocks in a prompt."""
    messages = row["prompt"] if is_chat(row) else []
    return [block.get("type") for block in _blocks(messages)]


def _blocks(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    contents = [content for message in messages if isinstance(content := message.get("content"), list)]
    return [block for content in contents for block in content if isinstance(block, dict)]


def _check_messages(messages: list[dict[str, Any]], where: str, processing_class: Any) -> None:
    for block in _blocks(messages):
        kind = block.get("type")
        if kind not in ("text", "image"):
            raise ValueError(
                f"{where} has a block of type {kind!r} in its prompt, and A2TGPOTrainer reads text and pictures alone: give blocks of "
                "type 'text' or 'image', or texts."
            )
        if kind == "image" and not isinstance(processing_class, ProcessorMixin):
            raise TypeError(
                f"{where} has a picture in its prompt, and processing_class is a tokenizer: pass the processor of a model for "
                "pictures, AutoProcessor.from_pretrained(...), or give text alone."
            )
        if kind == "image":
            _check_block(block, where)


def _check_block(block: dict[str, Any], where: str) -> None:
    for key in ADDRESSES:
        if block.get(key) is not None:
            raise ValueError(
                f"{where} has a picture with the key {key!r}, and nothing is fetched or opened for a prompt: give PIL images in a column "
                "'images', with a block {'type': 'image'} in the prompt for each."
            )
    if block.get("image") is not None:
        _check_picture(block["image"], where)


def _check_picture(picture: Any, where: str) -> None:
    if not is_pil_image(picture):
        raise TypeError(
            f"{where} has a picture of type {type(picture).__name__}, and pictures are PIL images: give them in a column 'images', cast "
            "to datasets.List(datasets.Image()), with a block {'type': 'image'} in the prompt for each."
        )
