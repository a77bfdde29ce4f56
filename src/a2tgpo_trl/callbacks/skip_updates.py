"""Skips optimizer steps whose gradient is zero or not finite."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)


class SkipUpdates(TrainerCallback):
    """
    Skips optimizer steps that can only do harm, and counts them.

    - Empty ones, whose gradient is exactly zero: when every group of a batch has equal rewards and gains, Adam's momentum and
      weight decay move the weights all the same; with sparse rewards, a run of such steps can undo what was learned.
    - Those whose gradient holds NaN or infinity, one of which makes NaN of all weights.

    Both kinds of gradients are dropped before the step: torch optimizers skip parameters that have none.

    Args:
        accelerator (`Accelerator`): Of the trainer.
        log_metric (`Callable`): Takes the name of a metric and its value.
        skip_empty (`bool`): Whether empty steps are left out.

    Attributes:
        num_empty (`int`): Empty steps that were left out.
        num_non_finite (`int`): Steps that were left out over NaN or infinity.
    """

    def __init__(self, accelerator: Accelerator, log_metric: Callable[[str, float], None], skip_empty: bool):
        self.accelerator = accelerator
        self.log_metric = log_metric
        self.skip_empty = skip_empty
        self.num_empty = self.num_non_finite = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        largest = self._largest_gradient(model)
        empty, non_finite = self.skip_empty and largest == 0, not math.isfinite(largest)
        if empty or non_finite:
            model.zero_grad(set_to_none=True)
        if non_finite:
            logger.warning(
                f"Optimizer step {state.global_step + 1} was left out: its gradient holds NaN or infinity. Look for "
                "log-probabilities, rewards or advantages that are not finite; with fp16=True, steps that overflow now "
                "and then are normal."
            )
        self.num_non_finite += non_finite
        self.log_metric("updates/non_finite", float(non_finite))
        if self.skip_empty:
            self.num_empty += empty
            self.log_metric("updates/empty", float(empty))

    def state_dict(self) -> dict[str, int]:
        """What was counted."""
        return {"num_empty": self.num_empty, "num_non_finite": self.num_non_finite}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_empty, self.num_non_finite = state["num_empty"], state["num_non_finite"]

    def _largest_gradient(self, model: nn.Module) -> float:
        """The largest absolute value of all gradients, NaN if one of them is: the one number that the host waits for."""
        gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        device = self.accelerator.device
        largest = [g.detach().abs().amax().float().to(device) for g in gradients if g.numel()]
        # Shards of one gradient can differ between processes (FSDP), the decision must not
        largest = self.accelerator.gather(torch.stack([torch.zeros((), device=device), *largest]).amax().reshape(1))
        return largest.amax().item()


def _local(gradient: Tensor) -> Tensor:
    """This process's shard of a gradient that FSDP2 spreads over processes."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
