"""What a run will hold in memory, as far as it can be told before it runs."""

from transformers import PretrainedConfig
from trl import GRPOTrainer

from ..architecture import base_model

LOGITS_TILE = 4096 * 32768
"""Elements of the tile in which TRL's fused LM head makes logits."""


def estimate(trainer: GRPOTrainer) -> dict[str, int]:
    """
    Bytes on one device by what they are for; `docs/scaling.md` derives each.

    Sharding (ZeRO, FSDP) is not counted: it divides weights, gradients and optimizer state by the number of devices.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config.get_text_config()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = next(base_model(model).parameters()).element_size()
    width = 2 if (args.bf16 or args.fp16) else size  # of activations
    num_rollouts = args.per_device_train_batch_size * args.steps_per_generation
    tokens = args.max_completion_length
    return {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "gradients": sum(parameter.numel() * parameter.element_size() for parameter in trainable),
        "optimizer state (Adam)": sum(2 * parameter.numel() * parameter.element_size() for parameter in trainable),
        "keys and values while generating": 0
        if trainer.use_vllm
        else num_rollouts * tokens * key_value_bytes(config, size),
        "keys and values while scoring": args.per_device_train_batch_size * tokens * key_value_bytes(config, width),
        "activations of a micro-batch": args.per_device_train_batch_size
        * tokens
        * _activation_bytes(config, width, args),
        "a tile of logits": LOGITS_TILE * width,
    }


def key_value_bytes(config: PretrainedConfig, size: int) -> int:
    """Bytes of the keys and values of one token: `2 × layers × key-value heads × head size × bytes`."""
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return (
        2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or num_heads) * head_size * size
    )


def _activation_bytes(config: PretrainedConfig, size: int, args) -> int:
    """
    Bytes kept for the backward pass of one token: with gradient checkpointing a layer's input, and what one layer needs;
    without, the latter for each layer: its input four times, queries, keys, values, attention output, and three times the
    feed-forward width.
    """
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = (8 * config.hidden_size + 3 * feed_forward) * size
    if args.gradient_checkpointing:
        return config.num_hidden_layers * config.hidden_size * size + layer
    return config.num_hidden_layers * layer
