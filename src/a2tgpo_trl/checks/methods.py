"""What an estimator and its signals need."""

from typing import Any

from accelerate.utils import is_peft_model

from ..config import A2TGPOConfig
from ..credit import ESTIMATORS, Estimator
from ..integrations.processors import tokenizer_of
from ..records import SCHEMA
from ..records.tables import TABLE_COLUMNS
from .data import check_answer_columns


def check_for_beliefs(
    args: A2TGPOConfig, train_dataset: Any, eval_dataset: Any, processing_class: Any, environment_factory: Any
) -> None:
    """
    Refuse tokenizers and datasets with which beliefs cannot be measured.

    Args:
        args, train_dataset, eval_dataset, processing_class, environment_factory: As the trainer has them.

    Raises:
        TypeError: If the tokenizer does not tell where its tokens stand in a text.
        ValueError: If there are no true answers.
    """
    tokenizer = tokenizer_of(processing_class)
    if not tokenizer.is_fast:
        raise TypeError(
            f"Information gain finds the answer's tokens by character offsets, which {type(tokenizer).__name__} "
            "does not give: use a fast tokenizer, or choose an advantage_estimator that needs no answers, such as 'grpo'."
        )
    check_answer_columns(args.answer_column, train_dataset, eval_dataset, environment_factory)


def check_columns(estimator: Estimator) -> None:
    """
    Refuse columns of an estimator that the completions table or turn records have already.

    Args:
        estimator ([`Estimator`]): Whose `columns` are looked at.

    Raises:
        ValueError: If a name is taken.
    """
    taken = {*TABLE_COLUMNS, *SCHEMA.names} - {"normalized_gain"}
    if clashes := [column for column in estimator.columns if column in taken]:
        raise ValueError(
            f"{type(estimator).__name__}.columns names {clashes[0]!r}, which is a column of the completions table or of turn records "
            "already: choose another name."
        )


def check_turn_rewards(args: A2TGPOConfig, turn_reward_funcs: list) -> None:
    """
    Refuse turn reward functions that nothing reads, or their absence.

    Args:
        args ([`A2TGPOConfig`]): The options.
        turn_reward_funcs (`list`): Functions, models or their names.

    Raises:
        TypeError: If one of them is neither.
        ValueError: If the estimator reads none, needs some, or weights are too few or too many.
    """
    estimator, weights = args.estimator, args.turn_reward_weights
    name = f"advantage_estimator={args.advantage_estimator!r}"
    if "turn_rewards" in args.signals and not turn_reward_funcs:
        raise ValueError(
            f"{name} compares turn rewards, and there are none: give the trainer turn_reward_funcs, functions "
            "(turns, **columns) that return a list of one number per turn for each rollout."
        )
    if turn_reward_funcs and "turn_rewards" not in (*estimator.signals, *estimator.optional_signals):
        readers = [
            repr(name) for name, cls in ESTIMATORS.items() if "turn_rewards" in (*cls.signals, *cls.optional_signals)
        ]
        raise ValueError(
            f"turn_reward_funcs have no effect with {name}, which reads no turn rewards: leave them out, or choose "
            f"{' or '.join(readers)}."
        )
    for function in turn_reward_funcs:
        if not callable(function) and not isinstance(function, str):
            raise TypeError(
                f"turn_reward_funcs must be functions, models or names of models, got {type(function).__name__}."
            )
    if weights is not None and len(weights) != len(turn_reward_funcs):
        raise ValueError(
            f"turn_reward_weights has {len(weights)} numbers, and there are {len(turn_reward_funcs)} turn_reward_funcs: give one "
            "weight for each."
        )


def check_reference(args: A2TGPOConfig, model: Any, peft_config: Any) -> None:
    """
    Refuse to ask a reference for beliefs where there is none.

    Args:
        args ([`A2TGPOConfig`]): The options.
        model (`str` or `nn.Module`), peft_config (`PeftConfig`, *optional*): As [`A2TGPOTrainer`] gets them.

    Raises:
        ValueError: If all weights are trained, and TRL keeps no copy of them.
    """
    if args.belief_model == "reference" and args.beta == 0 and peft_config is None and not is_peft_model(model):
        raise ValueError(
            "belief_model='reference' asks a model that training does not move, and there is none: all weights are trained, and "
            "with beta=0.0 TRL keeps no reference model. Set beta above 0, train an adapter (peft_config), "
            "or choose belief_model='policy'."
        )
