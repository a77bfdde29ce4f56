"""Loads what TRL would load by itself."""

from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOConfig
from trl.trainer.utils import get_config_model_id


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
