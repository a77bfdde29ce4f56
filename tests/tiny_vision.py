"""Tiny models for pictures with their processors: Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Gemma 3, made on the spot."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl.chat_template_utils import gemma3_chat_template, qwen3_5_nothink_chat_template, qwen3_vl_chat_template

import tiny

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
GEMMA = ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"]
TEXT = dict(
    vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, bos_token_id=None,
)  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
PATCH = 4
"""Pixels of a patch's side; with Qwen four patches make a token."""


def _tokenizer(tokens: list[str], **named: str) -> PreTrainedTokenizerFast:
    built = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny._backend()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
        padding_side="left",  # as TRL loads them
    )
    others = [token for token in ("<|im_start|>", *tokens) if token not in named.values()]
    built.add_special_tokens({"additional_special_tokens": others})
    return built


def _of_images(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class itself, or without torchvision, which its part for videos needs, the rest of it."""
    if find_spec("torchvision"):
        return cls

    class OfImages(cls):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = map(
                tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token)
            )

    OfImages.__name__ = cls.__name__
    return OfImages


def _qwen_processor(cls: type[ProcessorMixin], chat_template: str) -> ProcessorMixin:
    size = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (16 * PATCH) ** 2}
    parts = [Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=size), _tokenizer(VISION)]
    if find_spec("torchvision"):
        from transformers import Qwen3VLVideoProcessor

        parts.append(Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=2))
    return _of_images(cls)(*parts, chat_template=chat_template)


def _gemma_processor() -> ProcessorMixin:
    images = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    pictures = Gemma3ImageProcessorPil(size={"height": 8 * PATCH, "width": 8 * PATCH})
    return Gemma3Processor(
        pictures, _tokenizer(GEMMA, **images), chat_template=gemma3_chat_template, image_seq_length=GEMMA_TOKENS
    )


GEMMA_TOKENS = 16
"""Of an image, with Gemma."""

PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "qwen2_5_vl": partial(_qwen_processor, Qwen2_5_VLProcessor, qwen3_vl_chat_template),  # its own renders no tools
    "qwen3_vl": partial(_qwen_processor, Qwen3VLProcessor, qwen3_vl_chat_template),
    "qwen3_5": partial(_qwen_processor, Qwen3VLProcessor, qwen3_5_nothink_chat_template),
    "gemma3": _gemma_processor,
}


def processor(family: str) -> ProcessorMixin:
    """A processor of a family; images are small."""
    return PROCESSORS[family]()


def _qwen2_5_vl(ids: dict[str, int], text: dict[str, Any]) -> PreTrainedModel:
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32, patch_size=PATCH,
        spatial_merge_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    text = {**text, "rope_parameters": ROPE}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def _qwen3_vision() -> dict[str, Any]:
    return dict(
        depth=2, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, patch_size=PATCH,
        spatial_merge_size=2, num_position_embeddings=16, deepstack_visual_indexes=[0],
    )  # fmt: skip


def _qwen3_vl(ids: dict[str, int], text: dict[str, Any]) -> PreTrainedModel:
    text = {**text, "rope_parameters": ROPE}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=_qwen3_vision(), **ids))


def _qwen3_5(ids: dict[str, int], text: dict[str, Any]) -> PreTrainedModel:
    linear = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2)
    linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
    rope = {**ROPE, "partial_rotary_factor": 1.0}
    text = {**text, "layer_types": ["linear_attention", "full_attention"], **linear, "rope_parameters": rope}
    vision = {name: value for name, value in _qwen3_vision().items() if name != "deepstack_visual_indexes"}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **ids))


def _gemma3(ids: dict[str, int], text: dict[str, Any]) -> PreTrainedModel:
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8 * PATCH,
        patch_size=PATCH,
    )  # fmt: skip
    text = {**text, "sliding_window": 64, "query_pre_attn_scalar": 8}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=GEMMA_TOKENS, **ids)
    return Gemma3ForConditionalGeneration(config)


MODELS: dict[str, Callable[[dict[str, int], dict[str, Any]], PreTrainedModel]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "gemma3": _gemma3,
}


def _placeholders(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    if family == "gemma3":
        names = ("boi_token_index", "eoi_token_index", "image_token_index")
        return dict(zip(names, tokenizer.convert_tokens_to_ids(GEMMA[:3]), strict=True))
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(VISION), strict=True))


def model(family: str, seed: int = 0, **text) -> PreTrainedModel:
    """A random model of a family in float32, the same for the same arguments; `text` are settings of what reads text."""
    torch.manual_seed(seed)
    built = MODELS[family](_placeholders(family, processor(family).tokenizer), {**TEXT, **text}).float()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return built


def picture(color: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """An image of one colour, with a corner of another."""
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).rectangle((0, 0, 5, 3), fill="white")
    return image
