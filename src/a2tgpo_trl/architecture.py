"""What the attention of a model can do."""

import inspect

from torch import nn
from transformers import PreTrainedModel


def layout_obstacle(model: PreTrainedModel) -> str | None:
    """
    Why the tokens of a model's sequence cannot lie anywhere in its input, or `None` if they can.

    That needs an attention that sees the whole context at each layer, and finds positions in `position_ids` alone.
    """
    config = model.config.get_text_config()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    other_layers = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other_layers:
        return f"{config.model_type} has {', '.join(other_layers)} layers"
    if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
        return f"{config.model_type} attends within a sliding window"
    if getattr(base, "_is_stateful", False):
        return f"{config.model_type} is recurrent"
    if _rope_type(model) in ("dynamic", "longrope"):
        return (
            f"{config.model_type} chooses its rotary frequencies by the length of the sequence ({_rope_type(model)})"
        )
    if getattr(config, "alibi", False):
        return f"{config.model_type} finds positions in the attention mask (ALiBi)"
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return f"{config.model_type} takes no position_ids"
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        return "a prompt-learning adapter adds virtual tokens"
    return None


def mask_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model cannot take a mask of any form in its own attention implementation, or `None` if it can."""
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in ("eager", "sdpa"):
        return f"attention implementation {implementation!r} takes no custom mask (eager and sdpa do)"
    return layout_obstacle(model)


def packing_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model cannot be run over a token tree with an attention function of ours, or `None` if it can."""
    config = model.config.get_text_config()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not base._supports_attention_backend:
        return f"{config.model_type} takes no attention function but its own"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{config.model_type} caps its attention scores"
    return layout_obstacle(model)


def shift_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model's numbers depend on how much padding a prompt has on its left, or `None` if they do not."""
    learned = f"{model.config.get_text_config().model_type} has no rotary positions, and padding shifts them"
    return None if _rope_type(model) else learned


def dropout_obstacle(model: nn.Module) -> str | None:
    """Why a forward of a model in its present mode is random, or `None` if it is not."""
    if not model.training:
        return None
    if getattr(model.config.get_text_config(), "attention_dropout", 0.0):
        return "attention_dropout is on"
    modules = (name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0)
    name = next(modules, None)
    return name and f"dropout is on in {name}"


def _rope_type(model: PreTrainedModel) -> str | None:
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return parameters.get("rope_type")
