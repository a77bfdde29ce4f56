"""[`Signal`]: what an advantage estimator reads beside the outcome, measured for each batch of rollouts."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from ..batch import GenerationBatch


class Signal:
    """One that measures nothing; subclasses override what they need."""

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

    def measure(self, batch: GenerationBatch, ends: Tensor) -> Tensor:
        """
        The signal of a batch that has been played and rewarded; to be called by all processes.

        Args:
            batch ([`GenerationBatch`]): With its tensors.
            ends (`Tensor`, shape `(B, K)`): Where observations end, -1 where there is none.

        Returns:
            `Tensor`, shape `(N, ·)`: of the completions of all processes.
        """
        raise NotImplementedError
