"""The signal `"tree"`: which turns completions of a prompt have in common, and how surprising each turn was."""

import math

import torch
from torch import Tensor

from ..batch import GenerationBatch
from .base import Signal, gather_turns, trained_turns

NO_TURN, NO_NODE = -1, -2


class Tree(Signal):
    """Nodes of turns, and their surprisals. In a batch that is no tree each turn is a node of its own."""

    def measure(self, batch: GenerationBatch, ends: Tensor) -> dict[str, Tensor]:
        """Node numbers, `(N, K)`, long, -1 where there is no turn; and surprisals in nats, `(N, K)`, NaN where not known."""
        nodes = torch.full(ends.shape, NO_TURN, dtype=torch.long)
        surprisals = torch.full(ends.shape, math.nan)
        for i, (rollout, num_turns) in enumerate(zip(batch.rollouts, trained_turns(batch), strict=True)):
            turns = rollout.turns[:num_turns]
            nodes[i, : len(turns)] = torch.tensor([NO_NODE if t.node is None else t.node for t in turns]).long()
            surprisals[i, : len(turns)] = torch.tensor(
                [math.nan if t.surprisal is None else t.surprisal for t in turns]
            )
        nodes = gather_turns(batch, nodes.to(ends.device), NO_TURN)
        its_own = torch.arange(nodes.numel(), device=nodes.device).view_as(nodes)
        return {
            "nodes": its_own.where(nodes == NO_NODE, nodes),
            "surprisals": gather_turns(batch, surprisals.to(ends.device), math.nan),
        }
