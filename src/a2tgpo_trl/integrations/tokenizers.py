"""The tokenizer of a model, as TRL loads it."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig
from trl.trainer.utils import get_config_model_id


def load_tokenizer(model: Any, args: GRPOConfig) -> PreTrainedTokenizerBase:
    """
    The model's tokenizer, of a model for pictures or audio too.

    Args:
        model (`str` or `PreTrainedModel`): As a trainer gets it.
        args ([`~trl.GRPOConfig`]): Revision, and whether code from the Hub may run.
    """
    return AutoTokenizer.from_pretrained(
        model if isinstance(model, str) else get_config_model_id(model.config),
        revision=(args.model_init_kwargs or {}).get("revision"),
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )
