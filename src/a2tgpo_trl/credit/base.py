"""What every advantage estimator is: a class that states what it reads, and turns groups of rollouts into credit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..functional import information_gain

SIGNALS = MappingProxyType(
    {
        "beliefs": (
            "belief_measure",
            "belief_model",
            "answer_aliases",
            "gain_from",
            "ig_tokens_per_batch",
        ),
        "turn_rewards": ("turn_reward_weights",),
        "states": (),
        "values": ("critic_layers", "critic_learning_rate", "vf_coef", "cliprange_value"),
        "tree": (),
    }
)
"""What can be measured for an estimator → the options of its measurement."""

CREDIT_GROUPS = ("all", "mixed")
"""Which groups have turn credit: all, or those whose rewards differ."""


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
        signals (`dict[str, Tensor]`): What the estimator asked for. `"beliefs"`, shape `(N, K + 1)`: the belief in the true
            answer at the prompt and after each observation, NaN where absent. `"beliefs_before_observation"`, shape `(N, K)`:
            that at the end of each tool turn's own text, with `gain_from="turn_end"` alone. `"turn_rewards"`, shape `(N, K)`: the reward of
            each turn, NaN where it has none. `"states"`, shape `(N, K)`, long: the state before each turn, equal numbers for
            the same state of a prompt, -1 where there is no turn. `"values"`, shape `(N, K + 1)`: what a critic expects before each
            turn; after the last one 0, or the value of the last state where a limit cut the rollout off; NaN elsewhere. `"nodes"`, shape
            `(N, K)`, long: numbers of the turns, equal in completions of a prompt that share the turn, -1 where there is none;
            `"surprisals"`, shape `(N, K)`: the mean of -log π over each turn's tokens, NaN where it is not known.
        answered (`Tensor`, shape `(N,)`, *optional*): Whether the last turn is an answer turn; not so where the completion was
            cut off, or ended at a call. Default: where no observation follows the last turn.

    `K` is the number of turns of the longest completion, at least 1.
    """

    outcome: Tensor
    rewards: Tensor
    num_turns: Tensor
    num_tool_turns: Tensor
    num_generations: int
    signals: dict[str, Tensor] = field(default_factory=dict)
    answered: Tensor | None = None

    def __post_init__(self):
        if self.answered is None:
            object.__setattr__(self, "answered", self.num_turns > self.num_tool_turns)

    @property
    def max_turns(self) -> int:
        """`K`."""
        for name, values in self.signals.items():  # all as wide, but for what is known of the prompt too
            return values.size(1) - (name in ("beliefs", "values"))
        return max(int(self.num_turns.max()), 1)

    @property
    def belief_before(self) -> Tensor:
        """The belief that each turn's gain is measured from, by the option `gain_from`, `(N, K)`."""
        return self.signals.get("beliefs_before_observation", self.signals["beliefs"][:, :-1])

    @property
    def information_gain(self) -> Tensor:
        """Of each tool turn (equation 2), NaN where there is none, `(N, K)`."""
        return information_gain(self.signals["beliefs"], self.belief_before)

    @property
    def unscored(self) -> Tensor:
        """Which completions have no reward, `(N,)`: their process signals are to count for nobody."""
        return self.rewards.isnan()

    @property
    def turn_rewards(self) -> Tensor:
        """The signal `"turn_rewards"`; all NaN where it was not measured."""
        nothing = self.outcome.new_full((len(self.outcome), self.max_turns), torch.nan)
        return self.signals.get("turn_rewards", nothing)

    def counted(self, credit_groups: str) -> "Turns":
        """
        The same turns, with NaN for rewards and signals of completions that get no turn credit and count in no comparison.

        Args:
            credit_groups (`str`): The option `turn_credit_groups`. `"all"`: completions without a reward are left out.
                `"mixed"`: also groups in which all rewards are equal.

        Returns:
            [`Turns`]
        """
        left_out = self.unscored if credit_groups == "all" else self.unscored | ~self.mixed
        signals = {
            name: values.masked_fill(left_out.unsqueeze(1), torch.nan) if values.is_floating_point() else values
            for name, values in self.signals.items()
        }
        return replace(self, rewards=self.rewards.masked_fill(left_out, torch.nan), signals=signals)

    @property
    def mixed(self) -> Tensor:
        """Which completions belong to groups whose rewards differ, `(N,)`."""
        rewards = self.rewards.unflatten(0, (-1, self.num_generations))
        lowest = rewards.nan_to_num(nan=torch.inf).amin(dim=1)
        highest = rewards.nan_to_num(nan=-torch.inf).amax(dim=1)
        return (lowest < highest).repeat_interleave(self.num_generations)


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
        value_targets (`Tensor`, shape `(N, K)`, *optional*): What the critic is to learn of the state before each turn; NaN for
            nothing. Needs the signal `"values"`.
    """

    advantages: Tensor
    clip_scale: Tensor | None = None
    outcome_part: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    value_targets: Tensor | None = None


class Estimator:
    """
    A method to give each turn its advantage: `advantage_estimator` of [`A2TGPOConfig`], by name, as a class, or as an object.

    Attributes:
        paper (`str`): Where the method is from, such as `"arXiv 2605.06200"`; empty if it is in no paper.
        options (`tuple[str, ...]`): Options of [`A2TGPOConfig`] that `credit` reads. One that another method reads and this
            one does not is refused if it is set.
        signals (`tuple[str, ...]`): What must be measured, of `SIGNALS`. Beliefs need true answers and a fast tokenizer.
        optional_signals (`tuple[str, ...]`): What `credit` also reads if it is measured: `"turn_rewards"` if the trainer has functions
            for them, others if `needs` asks for them.
        columns (`tuple[str, ...]`): Keys of [`TurnCredit`]`.columns`.
        defaults (`Mapping[str, Any]`): What options are that nobody set, of those whose default in the configuration is
            `None`. Default: TRL's `importance_sampling_level="token"`, `loss_type="dapo"` and `skip_empty_updates=False`.
        off_policy (`bool`): Whether the method needs several updates per batch of rollouts: it is warned of settings without.
    """

    paper: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()
    signals: ClassVar[tuple[str, ...]] = ()
    optional_signals: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {
        "importance_sampling_level": "token",
        "loss_type": "dapo",
        "skip_empty_updates": False,
    }
    off_policy: ClassVar[bool] = False

    def needs(self, options: Any) -> tuple[str, ...]:
        """The signals without which `credit` cannot work: `signals`, and those that options ask for."""
        return self.signals

    def check(self, options: Any) -> None:
        """
        Refuse options that do not go together, when the configuration is made.

        Args:
            options (`SimpleNamespace`): As for `credit`.

        Raises:
            ValueError: By a method that has such options.
        """

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
    """The options that an estimator, the schedule of its weight and the measurement of its signals read."""
    signals = (*estimator.signals, *estimator.optional_signals)
    measured = (option for signal in signals for option in SIGNALS.get(signal, ()))
    schedule = ["turn_advantage_schedule"] if "turn_advantage_coef" in estimator.options else []
    return (*estimator.options, *schedule, *measured)


def check_credit(estimator: Estimator, turns: Turns, credit: TurnCredit) -> None:
    """
    Refuse credit that does not fit the turns, or has other columns than the class states.

    Args:
        estimator ([`Estimator`]): Who gave it.
        turns ([`Turns`]), credit ([`TurnCredit`]): What it was given for, and what.

    Raises:
        ValueError: If a tensor has another shape, an advantage is NaN, columns are missing or too many, or a critic is asked and
            not taught.
    """
    name, per_completion = type(estimator).__name__, tuple(turns.outcome.shape)
    per_turn = (*per_completion, turns.max_turns)
    if set(credit.columns) != set(estimator.columns):
        raise ValueError(
            f"{name}.credit gave the columns {sorted(credit.columns)}, and {name}.columns states {sorted(estimator.columns)}: "
            "make them the same."
        )
    given = {"advantages": credit.advantages, "clip_scale": credit.clip_scale, "outcome_part": credit.outcome_part}
    given["value_targets"] = credit.value_targets
    for tensor, values in (given | credit.columns).items():
        shapes = [per_turn, per_completion] if tensor == "advantages" else [per_turn]
        if values is not None and tuple(values.shape) not in shapes:
            raise ValueError(
                f"{name}.credit gave {tensor} of shape {tuple(values.shape)}: expected {' or '.join(map(str, shapes))}, "
                "completions × turns."
            )
    if credit.value_targets is None and "values" in estimator.signals:
        raise ValueError(
            f"{name} asks a critic and teaches it nothing: give TurnCredit(..., value_targets=…), such as advantages + values."
        )
    if credit.value_targets is not None and "values" not in turns.signals:
        raise ValueError(f'{name} gave value_targets, and no critic was asked: state "values" in {name}.signals.')
    if credit.advantages.isnan().any():
        raise ValueError(
            f"{name}.credit gave advantages that are NaN: a turn without a process signal has the outcome's alone, for "
            "example turns.outcome.unsqueeze(1) + bonus.nan_to_num()."
        )
