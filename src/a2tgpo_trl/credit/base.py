"""What every advantage estimator is: a class that states what it reads, and turns groups of rollouts into credit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

SIGNALS = MappingProxyType({"beliefs": ("belief_measure", "answer_template", "ig_tokens_per_batch")})
"""What can be measured for an estimator → the options of its measurement."""


@dataclass(frozen=True)
class Turns:
    """
    Whole groups of completions, of all processes: what an estimator gives credit to.

    Attributes:
        outcome (`Tensor`, shape `(N,)`): TRL's group advantage; 0 for a completion without a reward.
        rewards (`Tensor`, shape `(N,)`): Weighted sum of the rewards; NaN where no reward function scored the completion.
        num_turns (`Tensor`, shape `(N,)`): Turns that are trained on, answer turn included.
        num_tool_turns (`Tensor`, shape `(N,)`): Turns that an observation follows; they come first.
        num_generations (`int`): Completions per prompt, in consecutive rows.
        signals (`dict[str, Tensor]`): What the estimator asked for; `"beliefs"`, shape `(N, K + 1)`: the belief in the true
            answer at the prompt and after each observation, NaN where absent.

    `K` is the number of turns of the longest completion, at least 1.
    """

    outcome: Tensor
    rewards: Tensor
    num_turns: Tensor
    num_tool_turns: Tensor
    num_generations: int
    signals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def max_turns(self) -> int:
        """`K`."""
        if "beliefs" in self.signals:
            return self.signals["beliefs"].size(1) - 1
        return max(int(self.num_turns.max()), 1)

    @property
    def unscored(self) -> Tensor:
        """Which completions have no reward, `(N,)`: their process signals are to count for nobody."""
        return self.rewards.isnan()


@dataclass(frozen=True)
class TurnCredit:
    """
    What an estimator gives to `N` completions with up to `K` turns.

    Attributes:
        advantages (`Tensor`, shape `(N, K)` or `(N,)`): Of each turn, or of each completion where its turns share one.
        clip_scale (`Tensor`, shape `(N, K)`, *optional*): Factor of each turn's clip range. Default: 1.
        outcome_part (`Tensor`, shape `(N, K)`, *optional*): The part of the advantages that the outcome gave. Default: the
            outcome advantage.
        columns (`dict[str, Tensor]`): What else metrics, tables and records are to show, each of shape `(N, K)`, NaN where a
            turn has no value.
    """

    advantages: Tensor
    clip_scale: Tensor | None = None
    outcome_part: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)


class Estimator:
    """
    A method to give each turn its advantage: `advantage_estimator` of [`A2TGPOConfig`], by name, as a class, or as an object.

    Attributes:
        options (`tuple[str, ...]`): Options of [`A2TGPOConfig`] that `credit` reads. One that another method reads and this
            one does not is refused if it is set.
        signals (`tuple[str, ...]`): What must be measured, of `"beliefs"`. Beliefs need true answers and a fast tokenizer.
        columns (`tuple[str, ...]`): Keys of [`TurnCredit`]`.columns`.
        defaults (`Mapping[str, Any]`): What options are that nobody set, of those whose default in the configuration is
            `None`. Default: TRL's `importance_sampling_level="token"`, `loss_type="dapo"` and `skip_empty_updates=False`.
        off_policy (`bool`): Whether the method needs several updates per batch of rollouts: it is warned of settings without.
    """

    options: ClassVar[tuple[str, ...]] = ()
    signals: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {
        "importance_sampling_level": "token",
        "loss_type": "dapo",
        "skip_empty_updates": False,
    }
    off_policy: ClassVar[bool] = False

    def credit(self, turns: Turns, options: Any) -> TurnCredit:
        """
        Credit every turn of whole groups.

        Args:
            turns ([`Turns`]): Of all processes.
            options (`SimpleNamespace`): The values of the options that the class states, and no others.

        Returns:
            [`TurnCredit`]
        """
        raise NotImplementedError(f"{type(self).__name__} has no method credit(turns, options).")


def options_read(estimator: Estimator | type[Estimator]) -> tuple[str, ...]:
    """The options that an estimator and the measurement of its signals read."""
    return (*estimator.options, *(option for signal in estimator.signals for option in SIGNALS[signal]))


def check_credit(estimator: Estimator, turns: Turns, credit: TurnCredit) -> None:
    """
    Refuse credit that does not fit the turns, or has other columns than the class states.

    Args:
        estimator ([`Estimator`]): Who gave it.
        turns ([`Turns`]), credit ([`TurnCredit`]): What it was given for, and what.

    Raises:
        ValueError: If a tensor has another shape, an advantage is NaN, or columns are missing or too many.
    """
    name, per_completion = type(estimator).__name__, tuple(turns.outcome.shape)
    per_turn = (*per_completion, turns.max_turns)
    if set(credit.columns) != set(estimator.columns):
        raise ValueError(
            f"{name}.credit gave the columns {sorted(credit.columns)}, and {name}.columns states {sorted(estimator.columns)}: "
            "make them the same."
        )
    given = {"advantages": credit.advantages, "clip_scale": credit.clip_scale, "outcome_part": credit.outcome_part}
    for tensor, values in (given | credit.columns).items():
        shapes = [per_turn, per_completion] if tensor == "advantages" else [per_turn]
        if values is not None and tuple(values.shape) not in shapes:
            raise ValueError(
                f"{name}.credit gave {tensor} of shape {tuple(values.shape)}: expected {' or '.join(map(str, shapes))}, "
                "completions × turns."
            )
    if credit.advantages.isnan().any():
        raise ValueError(
            f"{name}.credit gave advantages that are NaN: a turn without a process signal has the outcome's alone, for "
            "example turns.outcome.unsqueeze(1) + bonus.nan_to_num()."
        )
