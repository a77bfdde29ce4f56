"""What a tool gave, as the model reads it."""

from dataclasses import replace
from typing import Any

from transformers.image_utils import is_pil_image

from ..pictures import is_picture_block, picture_block
from .calls import EndRollout, ToolResult, ToolReward


def returned(name: str, value: Any) -> ToolResult:
    """The result of a call that returned; raises what the value's own methods raise."""
    if isinstance(value, ToolReward):
        return replace(returned(name, value.content), reward=float(value.reward))
    if isinstance(value, EndRollout):
        return replace(returned(name, "" if value.content is None else value.content), ends_rollout=True)
    return ToolResult(valid_text(name), _content(value))


def raised(name: str, error: BaseException) -> ToolResult:
    """The result of a call that raised."""
    try:
        if isinstance(error, EndRollout):
            return returned(name, error)
        text = str(error)
    except BaseException:
        text = ""
    return failure(name, text or type(error).__name__)


def failure(name: str, error: str) -> ToolResult:
    """The result of a call that failed for a known reason."""
    return ToolResult(valid_text(name), str({"error": valid_text(error)}), failed=True)


def _content(value: Any) -> str | list:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if is_pil_image(value):
        return [picture_block(value)]
    if isinstance(value, list | tuple) and any(map(is_pil_image, value)):
        return [picture_block(item) if is_pil_image(item) else _text_block(item) for item in value]
    if isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        return [_valid_block(block) for block in value]
    return valid_text(value if isinstance(value, str) else str(value))


def _text_block(item: Any) -> dict:
    return {"type": "text", "text": valid_text(item if isinstance(item, str) else str(item))}


def _valid_block(block: dict) -> dict:
    """Pictures and texts as they are; others as text, for processors fetch and open what such blocks name."""
    if is_picture_block(block):
        return picture_block(block["image"])
    if block["type"] == "text" and isinstance(block.get("text"), str):
        return _text_block(block["text"])
    return _text_block(block)


def valid_text(text: str) -> str:
    """The text without lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
