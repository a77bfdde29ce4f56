"""Tokenizers, and processors of pictures: which are known, and how they are loaded."""

from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOConfig
from trl.trainer.utils import get_config_model_id

QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"

PLACEHOLDERS = {
    "Qwen2VLProcessor": QWEN_PLACEHOLDER,
    "Qwen2_5_VLProcessor": QWEN_PLACEHOLDER,
    "Qwen3VLProcessor": QWEN_PLACEHOLDER,  # of Qwen3.5 too
    "Gemma3Processor": "<start_of_image>",
}
"""By the class of a processor, the text that stands for a picture and that the processor expands."""


def load_processing_class(model: Any, args: GRPOConfig, pictures: bool) -> PreTrainedTokenizerBase | ProcessorMixin:
    """
    The model's tokenizer, of a model for pictures or audio too; or its processor.

    Args:
        model (`str` or `PreTrainedModel`): As a trainer gets it.
        args ([`~trl.GRPOConfig`]): Revision, and whether code from the Hub may run.
        pictures (`bool`): Whether there are pictures in the data, which a processor reads.
    """
    loader = AutoProcessor if pictures else AutoTokenizer
    return loader.from_pretrained(
        model if isinstance(model, str) else get_config_model_id(model.config),
        revision=(args.model_init_kwargs or {}).get("revision"),
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )


def tokenizer_of(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    """A processor's tokenizer, or the tokenizer itself."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def placeholder_of(processor: ProcessorMixin) -> str | None:
    """The text that stands for a picture; `None` if the processor is of no known family."""
    names = (PLACEHOLDERS.get(cls.__name__) for cls in type(processor).__mro__)
    return next(filter(None, names), None)
