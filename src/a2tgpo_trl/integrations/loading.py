"""Loads what TRL would load by itself."""

import re
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
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
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    with naming_torchvision(name) if pictures else nullcontext():
        return loader.from_pretrained(
            name,
            revision=(args.model_init_kwargs or {}).get("revision"),
            truncation_side="left",
            padding_side="left",
            trust_remote_code=args.trust_remote_code,
        )


@contextmanager
def naming_torchvision(model: str):
    """
    Say that torchvision is missing, where transformers says so, or that it finds no video processor, all of which need torchvision.

    Args:
        model (`str`): Whose processor is loaded.

    Raises:
        ImportError: If it cannot be loaded for lack of torchvision.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError) as error:
        if find_spec("torchvision") or not re.search("torchvision|video.processor", str(error), re.IGNORECASE):
            raise
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f"The processor of {model} cannot be loaded ({reason}). Qwen's processors need torchvision, which is not installed: "
            "pip install 'a2tgpo-trl[vision]'."
        ) from error
