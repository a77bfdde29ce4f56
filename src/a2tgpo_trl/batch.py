"""[`GenerationBatch`]: all that lives for one batch of rollouts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .credit import TurnCredit, Turns, without_rounding
from .functional import leaves_below, observation_ends, spread_turns, turn_ids
from .rollout import Rollout, StopReason


@dataclass
class GenerationBatch:
    """
    A batch on its way: rows → rollouts → rewards and signals → credit → tensors. Each part is there once it is known.

    Attributes:
        rows (`list[dict]`, length `B`): Of the dataset; environments may add their answers.
        training (`bool`): Whether it is trained on, not only evaluated or played.
        num_generations (`int`): Rollouts of a prompt, in consecutive rows.
        accelerator (`Accelerator`): Of the trainer.
        answers (`list[list[str]]`, length `B`): The true answers that are scored, where beliefs are asked for; aliases of one,
            none where there is no answer.
        rollouts (`list[Rollout]`, length `B`): What was played.
        shared_forward (`SharedForward`, *optional*): The forward of the old log-probabilities, which scored beliefs too.
        rewards (`Tensor`, shape `(N, F)`): Of the completions of all processes, by reward function; NaN where there is none.
        turns ([`Turns`]), credit ([`TurnCredit`]): Of all processes.
        tensors (`dict[str, Tensor]`): What the loss reads, of this process: TRL's, and ours beside them.
    """

    rows: list[dict[str, Any]]
    training: bool
    num_generations: int
    accelerator: Accelerator
    answers: list[list[str]] | None = None
    rollouts: list[Rollout] = field(default_factory=list)
    shared_forward: Any = None
    rewards: Tensor | None = None
    turns: Turns | None = None
    credit: TurnCredit | None = None
    tensors: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.rows = [dict(row) for row in self.rows]

    @property
    def mode(self) -> str:
        """The word that TRL keeps metrics under."""
        return "train" if self.training else "eval"

    @property
    def local(self) -> slice:
        """This process's rows among those of all processes."""
        first = self.accelerator.process_index * len(self.rows)
        return slice(first, first + len(self.rows))

    @property
    def unscored(self) -> Tensor:
        """Which completions no reward function could score, `(N,)`."""
        return self.rewards.isnan().all(dim=1)

    def total_rewards(self, weights: Tensor) -> Tensor:
        """Weighted sum of the rewards, NaN for completions without one, `(N,)`."""
        weighted = self.rewards * weights.to(self.rewards.device)
        return weighted.nansum(dim=1).masked_fill(self.unscored, math.nan)

    def read_turns(
        self, signals: Mapping[str, Any], reward_weights: Tensor, last_tokens: Collection[int], exact_zeros: bool
    ) -> None:
        """
        Find the turns of all processes' completions, for a group may span processes, and measure their signals.

        Args:
            signals (`Mapping[str, Signal]`): By the name under which the estimator reads them.
            reward_weights (`Tensor`, shape `(F,)`): Of the reward functions.
            last_tokens (`Collection[int]`): Those with which a completion ends that no limit cut.
            exact_zeros (`bool`): Whether outcome advantages of groups of equal rewards are cleared of rounding.
        """
        masks = self.tensors["completion_mask"], self.tensors.get("tool_mask")
        ids, ends = turn_ids(*masks), observation_ends(*masks)
        self.tensors["turn_ids"] = ids
        measured = {}
        for signal in signals.values():
            measured |= signal.measure(self, ends)
        num_turns, num_tool_turns = ids.amax(dim=1) + 1, (ends >= 0).sum(dim=1)
        answered = torch.tensor([_is_answered(rollout, last_tokens) for rollout in self.rollouts], device=ids.device)
        answered &= num_turns > num_tool_turns
        local = self.tensors["advantages"], num_turns, num_tool_turns, answered
        outcome, num_turns, num_tool_turns, answered = self.accelerator.gather(local)
        rewards = self.total_rewards(reward_weights)
        if exact_zeros:
            outcome = without_rounding(outcome, rewards.isnan(), self.num_generations)
        self.turns = Turns(outcome, rewards, num_turns, num_tool_turns, self.num_generations, measured, answered)

    def take_credit(self, credit: TurnCredit, once_for_all_leaves: bool = True) -> None:
        """
        Write into the tensors what the losses of policy and critic read, and with beliefs the gains.

        Args:
            credit ([`TurnCredit`]): Of all processes.
            once_for_all_leaves (`bool`): Whether a turn that leaves of a tree have in common counts as one in the loss; else it counts
                in each of them.
        """
        self.credit, ids = credit, self.tensors["turn_ids"]
        weights = _weights(self.turns) if once_for_all_leaves else None
        self.tensors["advantages"] = advantages = _weighted(credit.advantages, weights)[self.local]
        if advantages.dim() == 2:
            self.tensors["advantages"] = spread_turns(advantages, ids, fill=0.0)
        if credit.clip_scale is not None:
            self.tensors["clip_scale"] = spread_turns(credit.clip_scale[self.local], ids, fill=1.0)
        if "beliefs" in self.turns.signals:
            self.tensors["information_gain"] = self.turns.information_gain[self.local]
        if credit.value_targets is not None:
            self.tensors["value_targets"] = credit.value_targets[self.local]
            self.tensors["old_values"] = self.turns.signals["values"][self.local, :-1]
            counted = _weighted((~credit.value_targets.isnan()).float(), weights)
            self.tensors["value_weights"] = counted[self.local]
            self.tensors["num_value_targets"] = counted.sum()

    def finish_rollouts(self, names: Sequence[str], answers: Sequence[str | None], columns: dict[str, Tensor]) -> None:
        """
        Tell this process's rollouts their answers, rewards and credit.

        Args:
            names (`Sequence[str]`, length `F`): Of the reward functions.
            answers (`Sequence[str | None]`, length `B`): The true answers.
            columns (`dict[str, Tensor]`): Credit of the turns of all processes, `(N, K)` each; NaN where a turn has none.
        """
        rewards, total = self.rewards[self.local].tolist(), self.turns.rewards[self.local].tolist()
        numbers = {name: values[self.local].tolist() for name, values in columns.items()}
        for i, rollout in enumerate(self.rollouts):
            rollout.answer, rollout.reward = answers[i], total[i]
            rollout.rewards = dict(zip(names, rewards[i], strict=True))
            for k, turn in enumerate(rollout.turns):
                turn.credit = {name: _number(rows[i], k) for name, rows in numbers.items()}


def _weights(turns: Turns) -> Tensor | None:
    """One over the completions with a reward that share a turn, `(N, K)`; `None` where none is shared."""
    if "nodes" not in turns.signals:
        return None
    leaves = leaves_below(turns.signals["nodes"].masked_fill(turns.unscored.unsqueeze(1), -1), turns.num_generations)
    return None if leaves.max() <= 1 else 1 / leaves.clamp(min=1)


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Values of turns, or of completions, `(N, K)` or `(N,)`."""
    return values if weights is None else weights * (values if values.dim() == 2 else values.unsqueeze(1))


def _is_answered(rollout: Rollout, last_tokens: Collection[int]) -> bool:
    """Whether the model itself ended a rollout: the loop says so, or its last token, unless that ends a call."""
    if rollout.stop_reason is not None:
        return rollout.stop_reason == StopReason.ANSWERED
    last = rollout.turns[-1] if rollout.turns else None
    return last is not None and not last.calls and last.ids[-1] in last_tokens


def is_cut_off(rollout: Rollout, last_tokens: Collection[int]) -> bool:
    """
    Whether a limit ended a rollout, and neither its answer nor a tool: the loop says so, or what the rollout ends with.

    Args:
        rollout (`Rollout`): What was played.
        last_tokens (`Collection[int]`): Those with which a completion ends that no limit cut.
    """
    return rollout.stop_reason != StopReason.TOOL_STOP and not _is_answered(rollout, last_tokens)


def _number(values: list[float], turn: int) -> float | None:
    return values[turn] if turn < len(values) and not math.isnan(values[turn]) else None
