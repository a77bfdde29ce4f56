"""Optimizer steps that have nothing to learn from."""

import torch
from transformers import TrainerCallback


class SkipEmptyUpdates(TrainerCallback):
    """
    Keeps an optimizer step whose gradient is exactly zero from moving weights and optimizer state, and counts it.

    When every group of a batch has equal rewards and gains, its gradient is zero, yet Adam's momentum and weight decay
    move the weights all the same; with sparse rewards, a run of such steps can undo what was learned. Parameters without
    a gradient are what every torch optimizer leaves alone, so the zero gradients are dropped before the step.

    Attributes:
        num_steps (`int`): Optimizer steps seen.
        num_empty (`int`): How many of them were skipped.
    """

    def __init__(self, accelerator, log_metric):
        self.accelerator = accelerator
        self.log_metric = log_metric
        self.num_steps = 0
        self.num_empty = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms = torch.stack([g.detach().float().norm(torch.inf) for g in gradients]) if gradients else torch.zeros(1)
        # Shards of one gradient can differ between processes in being zero (FSDP), the decision must not
        largest = self.accelerator.gather(norms.amax().to(self.accelerator.device).reshape(1)).amax()
        empty = bool(largest == 0)
        if empty:
            model.zero_grad(set_to_none=True)
        self.num_steps += 1
        self.num_empty += empty
        self.log_metric("updates/empty", float(empty))
