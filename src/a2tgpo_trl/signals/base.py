"""[`Signal`]: what an advantage estimator reads beside the outcome, measured for each batch of rollouts."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from trl import GRPOTrainer

from ..batch import GenerationBatch


class Signal:
    """
    One that measures nothing and learns nothing; subclasses override what they need.

    Args:
        trainer ([`A2TGPOTrainer`]): Set up but for its signals.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.trainer = trainer

    def prepare(self, batch: GenerationBatch) -> None:
        """
        Read what is needed of a batch's rows, whose environments are reset. Nothing is generated yet.

        Args:
            batch ([`GenerationBatch`]): With its rows.
        """

    def while_scoring(self, batch: GenerationBatch) -> AbstractContextManager:
        """
        What is to be in force while TRL generates and scores a batch.

        Args:
            batch ([`GenerationBatch`]): With its rows.
        """
        return nullcontext()

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """
        The signal of a batch that has been played and rewarded; to be called by all processes.

        Args:
            batch ([`GenerationBatch`]): With its tensors.
            ends (`Tensor`, shape `(B, K)`): Where observations end, -1 where there is none.

        Returns:
            `dict[str, Tensor]`: of shape `(N, ·)`, of the completions of all processes, by the name under which estimators read
            it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method measure(batch, ends).")

    def while_computing_loss(self, model: nn.Module) -> AbstractContextManager:
        """
        What is to be in force while TRL computes the loss of a micro-batch.

        Args:
            model (`nn.Module`): The policy, as the trainer has wrapped it.
        """
        return nullcontext()

    def loss(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """
        What a signal that is learned adds to the loss of a micro-batch, scaled for gradient accumulation; `None` for nothing.

        Args:
            inputs (`Mapping[str, Any]`): The tensors of the micro-batch.
        """
        return None

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer with what it trains beside the policy."""
        return []

    def save(self, folder: str | Path) -> None:
        """
        Write what it has learned.

        Args:
            folder (`str` or `Path`): Where the policy is saved; to be called by one process.
        """

    def load(self, folder: str | Path) -> None:
        """
        Read what it had learned.

        Args:
            folder (`str` or `Path`): Of a checkpoint.

        Raises:
            ValueError: If it is not there, or does not fit.
        """


def gather_turns(batch: GenerationBatch, table: Tensor, fill: float) -> Tensor:
    """
    A table of turns of all processes, as wide as the widest.

    Args:
        batch ([`GenerationBatch`]): Whose accelerator gathers.
        table (`Tensor`, shape `(B, K, …)`): Of this process.
        fill (`float`): Where there is no turn.

    Returns:
        `Tensor`, shape `(N, K, …)`
    """
    return batch.accelerator.gather(batch.accelerator.pad_across_processes(table, dim=1, pad_index=fill))


def trained_turns(batch: GenerationBatch) -> list[int]:
    """
    How many turns of each rollout are trained on: none of a completion that `mask_truncated_completions` leaves out.

    Args:
        batch ([`GenerationBatch`]): With its `turn_ids`.

    Returns:
        `list[int]`, length `B`
    """
    return (batch.tensors["turn_ids"].amax(dim=1) + 1).tolist()
