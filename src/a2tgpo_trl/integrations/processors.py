"""Processors of pictures: which are known, and what is in them."""

from transformers import PreTrainedTokenizerBase, ProcessorMixin

QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"

PLACEHOLDERS = {
    "Qwen2VLProcessor": QWEN_PLACEHOLDER,
    "Qwen2_5_VLProcessor": QWEN_PLACEHOLDER,
    "Qwen3VLProcessor": QWEN_PLACEHOLDER,  # of Qwen3.5 too
    "Gemma3Processor": "<start_of_image>",
}
"""By the class of a processor, the text that stands for a picture and that the processor expands."""


def tokenizer_of(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    """A processor's tokenizer, or the tokenizer itself."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def placeholder_of(processor: ProcessorMixin) -> str | None:
    """The text that stands for a picture; `None` if the processor is of no known family."""
    names = (PLACEHOLDERS.get(cls.__name__) for cls in type(processor).__mro__)
    return next(filter(None, names), None)
