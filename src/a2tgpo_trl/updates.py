"""Optimizer steps that have nothing to learn from."""

import torch
from torch import Tensor
from transformers import TrainerCallback


class SkipEmptyUpdates(TrainerCallback):
    """
    Keeps an optimizer step whose gradient is exactly zero from moving weights and optimizer state, and counts it.

    When every group of a batch has equal rewards and gains, its gradient is zero, yet Adam's momentum and weight decay
    move the weights all the same; with sparse rewards, a run of such steps can undo what was learned. Parameters without
    a gradient are what every torch optimizer leaves alone, so the zero gradients are dropped before the step.

    Attributes:
        num_empty (`int`): Steps that were skipped.
    """

    def __init__(self, accelerator, log_metric):
        self.accelerator = accelerator
        self.log_metric = log_metric
        self.num_empty = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        device = self.accelerator.device
        largest = [g.detach().abs().amax().float().to(device) for g in gradients if g.numel()]
        # Shards of one gradient can differ between processes in being zero (FSDP), the decision must not
        largest = self.accelerator.gather(torch.stack([torch.zeros((), device=device), *largest]).amax().reshape(1))
        empty = not bool(largest.amax() != 0)  # a NaN is not zero
        if empty:
            model.zero_grad(set_to_none=True)
        self.num_empty += empty
        self.log_metric("updates/empty", float(empty))


def _local(gradient: Tensor) -> Tensor:
    """This process's shard of a gradient that FSDP2 spreads over processes."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
