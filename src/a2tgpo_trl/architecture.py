"""What the attention of a model can do."""

import inspect

from transformers import PreTrainedModel


def attention_obstacle(model: PreTrainedModel) -> str | None:
    """
    Why the tokens of a model's sequence cannot lie anywhere in its input, or `None` if they can.

    That needs an attention that takes any mask (eager or sdpa), sees the whole context at each layer, and finds positions
    in `position_ids` alone. Packed beliefs rest on it, and histories of different length in one batch.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        return f"attention implementation {implementation!r} takes no custom mask (eager and sdpa do)"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    other_layers = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other_layers:
        return f"{config.model_type} has {', '.join(other_layers)} layers"
    if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
        return f"{config.model_type} attends within a sliding window"
    if getattr(base, "_is_stateful", False):
        return f"{config.model_type} is recurrent"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in ("dynamic", "longrope"):
        return f"{config.model_type} chooses its rotary frequencies by the length of the sequence ({rope})"
    if getattr(config, "alibi", False):
        return f"{config.model_type} finds positions in the attention mask (ALiBi)"
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return f"{config.model_type} takes no position_ids"
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        return "a prompt-learning adapter adds virtual tokens"
    return None
