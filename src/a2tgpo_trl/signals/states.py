"""The signal `"states"`: where each turn sets out from, so that turns from the same state can be compared."""

import hashlib

import torch
from torch import Tensor

from ..batch import GenerationBatch
from ..rollout import Rollout, Turn
from ..rollout.pictures import digest
from .base import Signal, gather_turns, trained_turns
from .texts import normalized

NO_TURN = -1


class States(Signal):
    """
    Ids of the states before turns: equal ids are equal states.

    The first turn sets out from the prompt; a later one from the observation before it, as normalised text and the pictures in it,
    or from what the environment's `state_key()` said then.
    """

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """State ids, `(N, K)`, long; -1 where there is no turn."""
        table = torch.full(ends.shape, NO_TURN, dtype=torch.long)
        for row, rollout, num_turns in zip(table, batch.rollouts, trained_turns(batch), strict=True):
            ids = [state_id(key) for key in state_keys(rollout)[:num_turns]]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return {"states": gather_turns(batch, table.to(ends.device), NO_TURN)}


def state_keys(rollout: Rollout) -> list[str]:
    """What the state before each turn of a rollout is known by."""
    states = [turn.state if turn.state is not None else _observed(turn) for turn in rollout.turns]
    first = rollout.state if rollout.state is not None else repr(rollout.prompt_ids)
    return [first, *states[:-1]]


def _observed(turn: Turn) -> str:
    text = normalized(turn.observation)
    return f"{text} {digest(turn.images)}" if turn.images else text


def state_id(key: str) -> int:
    """A number of 63 bits for a key, the same on all processes."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1
