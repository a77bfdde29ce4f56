"""What writes the turns of the tool loop, which submits rollouts and collects their turns, as it does with tools."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

Generate = Callable[[list[int], list[list[int]], list[int], int], tuple[list[list[int]], list[list[float]] | None]]
"""
`generate(indices, contexts, max_tokens, batch_size)` → the next turn of some rollouts, each of at most so many tokens, and
its log-probabilities if the backend tells them. `batch_size` is their number, or in lockstep that of the process with the
most.
"""


@dataclass(frozen=True)
class WrittenTurn:
    """
    A turn that has just been written.

    Attributes:
        index (`int`): The rollout.
        ids (`list[int]`): Its tokens.
        logprobs (`list[float]`, *optional*): Their log-probabilities if the backend tells them.
    """

    index: int
    ids: list[int]
    logprobs: list[float] | None


class TurnWriter(ABC):
    """
    Writes turns.

    Attributes:
        patience (`float`, *optional*): Seconds that ready rollouts wait for others, to be written with them; `None` if they may
            be submitted at any time, so that nobody waits.
    """

    patience: float | None = None

    @property
    @abstractmethod
    def pending(self) -> int:
        """Rollouts submitted and not collected."""

    @abstractmethod
    def submit(self, indices: list[int], contexts: list[list[int]], max_tokens: list[int], batch_size: int) -> None:
        """
        Take rollouts whose next turn is to be written.

        Args:
            indices (`list[int]`, length `B`): The rollouts.
            contexts (`list[list[int]]`, length `B`): The token ids that they go on from.
            max_tokens (`list[int]`, length `B`): Tokens that each turn may have.
            batch_size (`int`): `B`; in lockstep the largest of all processes.
        """

    @abstractmethod
    def collect(self) -> list[WrittenTurn]:
        """Write on. Returns the turns that ended, of which there may be none yet."""

    @abstractmethod
    def discard(self) -> None:
        """Forget everything that is pending."""


class BatchWriter(TurnWriter):
    """
    Writes all that was submitted in one batch.

    Args:
        generate (`Callable`): Writes a batch.
        patience (`float`): Seconds that the last generation took before; then it is always that of the last one.
    """

    def __init__(self, generate: Generate, patience: float = 0.0):
        self.generate = generate
        self.patience = patience
        self._batch: tuple[list[int], list[list[int]], list[int], int] | None = None

    @property
    def pending(self) -> int:
        return 0 if self._batch is None else len(self._batch[0])

    def submit(self, indices: list[int], contexts: list[list[int]], max_tokens: list[int], batch_size: int) -> None:
        self._batch = indices, contexts, max_tokens, batch_size

    def collect(self) -> list[WrittenTurn]:
        batch, self._batch = self._batch, None
        start = perf_counter()
        turns, logprobs = self.generate(*batch)
        self.patience = perf_counter() - start
        told = [None] * len(turns) if logprobs is None else logprobs
        return [WrittenTurn(*turn) for turn in zip(batch[0], turns, told, strict=True)]

    def discard(self) -> None:
        self._batch = None
