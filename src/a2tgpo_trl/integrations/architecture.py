"""What the attention of a model can do."""

import inspect

from torch import nn
from transformers import PreTrainedModel


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model under its adapters, if it has any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_reference(model: nn.Module) -> bool:
    """Whether a model runs as the reference just now: with its adapters off, or with TRL's frozen copy of them."""
    if not hasattr(model, "peft_config"):
        return False
    return model.active_adapter == "ref" or model.get_model_status().enabled is False


def why_no_free_layout(model: PreTrainedModel) -> str | None:
    """
    Why the tokens of a model's sequence cannot lie anywhere in its input, or `None` if they can.

    That needs an attention that sees the whole context at each layer, and finds positions in `position_ids` alone.
    """
    config = model.config.get_text_config()
    other_layers = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other_layers:
        return f"{config.model_type} has {', '.join(other_layers)} layers"
    if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
        return f"{config.model_type} attends within a sliding window"
    if getattr(base_model(model), "_is_stateful", False):
        return f"{config.model_type} is recurrent"
    if by_length := length_dependent_rope(model):
        return f"{config.model_type} chooses its rotary frequencies by the length of the sequence ({by_length})"
    if getattr(config, "alibi", False):
        return f"{config.model_type} finds positions in the attention mask (ALiBi)"
    if "position_ids" not in inspect.signature(type(base_model(model)).forward).parameters:
        return f"{config.model_type} takes no position_ids"
    adapters = getattr(model, "peft_config", {}).values()
    if any(adapter.is_prompt_learning or adapter.peft_type == "ADAPTION_PROMPT" for adapter in adapters):
        return "a prompt-learning adapter adds virtual tokens"
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
        return "an activated LoRA looks for its tokens in the input"
    return None


def why_no_custom_mask(model: PreTrainedModel) -> str | None:
    """Why a model cannot take a mask of any form in its own attention implementation, or `None` if it can."""
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in ("eager", "sdpa"):
        return f"attention implementation {implementation!r} takes no custom mask (eager and sdpa do)"
    return why_no_free_layout(model)


def why_no_token_tree(model: PreTrainedModel) -> str | None:
    """Why a model cannot be run over a token tree with an attention function of ours, or `None` if it can."""
    config = model.config.get_text_config()
    if not base_model(model)._supports_attention_backend:
        return f"{config.model_type} takes no attention function but its own"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{config.model_type} caps its attention scores"
    if len(set((getattr(base_model(model), "hf_device_map", None) or {}).values())) > 1:
        return "the model is split over several devices"
    return why_no_free_layout(model)


def why_no_pictures_in_trees(model: PreTrainedModel) -> str | None:
    """Why a token tree cannot hold pictures for a model, or `None` if it can."""
    if "token_type_ids" in inspect.signature(type(base_model(model)).forward).parameters:
        return f"{model.config.model_type} attends to the tokens of a picture in both directions"
    return None


def why_padding_shifts(model: PreTrainedModel) -> str | None:
    """Why a model's numbers depend on how much padding a prompt has on its left, or `None` if they do not."""
    learned = f"{model.config.get_text_config().model_type} has no rotary positions, and padding shifts them"
    return None if _rope_types(model) else learned


def why_random(model: nn.Module) -> str | None:
    """Why a forward of a model in its present mode is random, or `None` if it is not."""
    if not model.training:
        return None
    parts = [model.config.get_text_config(), getattr(model.config, "vision_config", None)]
    settings = [setting for part in parts if part is not None for setting in part.to_dict().items()]
    options = [name for name, value in settings if (name in _RANDOM or name.endswith("jitter_noise")) and value]
    modules = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    return f"{options[0]} is on" if options else f"dropout is on in {modules[0]}" if modules else None


_RANDOM = ("dropout", "attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop")
"""Options of model configs that some attention or feed-forward layers read where no module shows it."""


def length_dependent_rope(model: PreTrainedModel) -> str | None:
    """The kind of rotary embedding whose frequencies change with the longest sequence of a batch, if the model has one."""
    return next(iter(sorted(_rope_types(model) & {"dynamic", "longrope"})), None)


def _rope_types(model: PreTrainedModel) -> set[str]:
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]  # one for each type of layers
    return {rope["rope_type"] for rope in [parameters, *by_layer] if rope.get("rope_type")}
