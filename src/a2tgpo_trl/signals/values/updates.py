"""[`CriticUpdates`]: what the trainer does to the gradients of its model, done to those of the critic."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)


class CriticUpdates(TrainerCallback):
    """
    Averages the critic's gradients over processes before each optimizer step, clips them, and clears them after it. It is left out of
    steps for which they are not finite, and with `skip_empty_updates` of those for which they are zero.

    The critic is no part of the model that is wrapped for several processes, so nobody else does.

    Args:
        critic (`nn.Module`): Its parameters are in the trainer's optimizer.
        accelerator (`Accelerator`): Of the trainer.
        log_metric (`Callable`): Takes the name of a metric and its value.
    """

    def __init__(self, critic: nn.Module, accelerator: Accelerator, log_metric: Callable[[str, float], None]):
        self.critic, self.accelerator, self.log_metric = critic, accelerator, log_metric

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trained = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # all processes reduce the same tensors
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        largest = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(trained, largest).item()
        self.log_metric("critic/grad_norm", norm)
        non_finite = not math.isfinite(norm)
        self.log_metric("critic/non_finite", float(non_finite))
        if non_finite or (args.skip_empty_updates and norm == 0):
            self.critic.zero_grad(set_to_none=True)  # optimizers of torch skip parameters without a gradient
        if non_finite:
            logger.warning(
                f"The critic was left out of optimizer step {state.global_step + 1}: its gradient holds NaN or infinity. Look for "
                "rewards that are very large, and for values that are not finite."
            )

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.critic.zero_grad(set_to_none=True)
