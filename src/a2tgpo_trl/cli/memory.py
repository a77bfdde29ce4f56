"""What a run will hold in memory, as far as it can be told before it runs."""

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from trl import GRPOTrainer

from ..integrations.architecture import base_model

LOGITS_TILE = 4096 * 32768
"""Elements of the tile in which TRL's fused LM head makes logits."""
PHASES = ("generating", "scoring", "updating")


@dataclass(frozen=True)
class Part:
    """
    Something that memory holds.

    Attributes:
        size (`int`): Bytes on one device.
        phases (`tuple[str, ...]`): While it is there.
    """

    size: int
    phases: tuple[str, ...] = PHASES


def estimate(trainer: GRPOTrainer, prompt_tokens: int) -> dict[str, Part]:
    """
    What one device holds, by what it is for; `docs/scaling.md` derives each.

    Sharding (ZeRO, FSDP) is not counted: it divides weights, gradients and optimizer state by the number of devices.

    Args:
        trainer (`GRPOTrainer`): With its model and its options.
        prompt_tokens (`int`): Tokens of a prompt; completions count with the most they may have.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config.get_text_config()
    size = next(base_model(model).parameters()).element_size()
    width = 2 if (args.bf16 or args.fp16) else size  # of activations
    tokens = prompt_tokens + args.max_completion_length
    micro_batch = args.per_device_train_batch_size * tokens
    generated = 0 if trainer.use_vllm else micro_batch * args.steps_per_generation
    parts = {
        "weights": Part(_bytes(model)),
        "reference model": Part(_bytes(trainer.ref_model) if trainer.ref_model else 0),
        "gradients": Part(_bytes(model, trained=True)),
        "optimizer state (Adam)": Part(2 * _bytes(model, trained=True)),
        "keys and values while generating": Part(generated * key_value_bytes(config, size), ("generating",)),
        "keys and values while scoring": Part(micro_batch * key_value_bytes(config, width), ("scoring",)),
        "activations of a micro-batch": Part(micro_batch * _activation_bytes(config, width, args), ("updating",)),
        "a tile of logits": Part(LOGITS_TILE * width, ("scoring", "updating")),
    }
    return {name: part for name, part in parts.items() if part.size}


def peak(parts: dict[str, Part]) -> tuple[str, int]:
    """When most is held, one of `PHASES`, which take turns, and how many bytes that is."""
    sums = {phase: sum(part.size for part in parts.values() if phase in part.phases) for phase in PHASES}
    return max(sums.items(), key=lambda item: item[1])


def key_value_bytes(config: PretrainedConfig, size: int) -> int:
    """Bytes of the keys and values of one token: `2 × layers × key-value heads × head size × bytes`."""
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return (
        2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or num_heads) * head_size * size
    )


def _bytes(model: nn.Module, trained: bool = False) -> int:
    parameters = (parameter for parameter in model.parameters() if parameter.requires_grad or not trained)
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


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
