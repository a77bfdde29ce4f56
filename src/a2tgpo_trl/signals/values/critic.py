"""[`Critic`]: a value head on the first blocks of the policy, or on the policy itself."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...integrations.architecture import base_model


class Critic(nn.Module):
    """
    A number for each token that is read: the value of the text up to it.

    With blocks of its own it starts as a copy of the policy's first ones, in float32; its embedding is not trained. Without any it
    reads the policy's last hidden states. The value head starts at 0.

    Args:
        policy ([`~transformers.PreTrainedModel`]): With or without adapters, whose weights are left out.
        num_layers (`int`): Blocks of its own.

    Raises:
        ValueError: If the policy has fewer blocks, or weights that cannot be copied.
    """

    def __init__(self, policy: PreTrainedModel, num_layers: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the run's random numbers stay those of a run without a critic
            self.blocks = first_blocks(policy, num_layers) if num_layers else None
            self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()  # no dropout in its own blocks: old values and new ones differ by what was learned alone

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states of its own blocks, `(B, L, H)`."""
        return self.blocks(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def forward(self, hidden_states: Tensor, columns: Tensor) -> Tensor:
        """
        Values at some tokens.

        Args:
            hidden_states (`Tensor`, shape `(B, L, H)`): Of its blocks or of the policy.
            columns (`Tensor`, shape `(B, K)`, long): Where each value is read.

        Returns:
            `Tensor`, shape `(B, K)`, float32
        """
        rows = torch.arange(len(columns), device=columns.device).unsqueeze(1)
        return self.head(hidden_states[rows, columns].float()).squeeze(-1)


def first_blocks(policy: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """
    A copy of a policy's first blocks with its embedding and final norm, in float32.

    Args:
        policy ([`~transformers.PreTrainedModel`]): With or without adapters.
        num_layers (`int`): How many.

    Returns:
        [`~transformers.PreTrainedModel`]: of the class of the policy's decoder, its embedding frozen.

    Raises:
        ValueError: If the policy has fewer blocks, or weights that cannot be copied.
    """
    model = base_model(policy)
    decoder = model.get_decoder()
    config = copy.deepcopy(decoder.config.get_text_config())
    if num_layers > config.num_hidden_layers:
        raise ValueError(
            f"critic_layers={num_layers}, and the policy has {config.num_hidden_layers} blocks to copy: choose at most as many."
        )
    of_layers = [name for name, value in vars(config).items() if _is_of_layers(value, config.num_hidden_layers)]
    for name in of_layers:  # such as layer_types
        setattr(config, name, getattr(config, name)[:num_layers])
    config.num_hidden_layers = num_layers
    attention = decoder.config._attn_implementation
    if attention not in ("eager", "sdpa"):  # others may run in half precision only
        attention = "sdpa" if decoder._supports_sdpa else "eager"
    blocks = type(decoder)._from_config(config, attn_implementation=attention, dtype=torch.float32)
    blocks.load_state_dict(_weights_without_adapters(model, decoder, blocks.state_dict().keys(), num_layers))
    blocks.get_input_embeddings().requires_grad_(False)
    return blocks


def _is_of_layers(value: Any, num_layers: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == num_layers


def _weights_without_adapters(
    model: PreTrainedModel, decoder: PreTrainedModel, names: set[str], num_layers: int
) -> dict[str, Tensor]:
    """Those weights of a decoder that a shorter one has, by their names there."""
    weights = {re.sub(r"\.(base_layer|original_module)\.", ".", name): w for name, w in decoder.state_dict().items()}
    weights = {name: weights[name] for name in weights if name in names}
    if getattr(model, "is_quantized", False) or not all(weight.is_floating_point() for weight in weights.values()):
        raise ValueError(
            f"critic_layers={num_layers} copies the first blocks of the policy, whose weights are quantised: load the model without "
            "quantization, or set critic_layers=0 for a value head on the policy itself."
        )
    return {name: weight.detach().float() for name, weight in weights.items()}
