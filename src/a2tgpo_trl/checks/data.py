"""What is refused of datasets."""

from collections.abc import Mapping
from typing import Any

from ..signals.beliefs import scored_answers
from .pictures import block_types, check_row, is_chat, picture_columns


def check_datasets(train_dataset: Any, eval_dataset: Any, processing_class: Any) -> None:
    """
    Refuse datasets that cannot be trained on.

    Args:
        train_dataset, eval_dataset, processing_class: As the trainer has them.

    Raises:
        TypeError: If there are pictures in one, and `processing_class` is a tokenizer.
        ValueError: If there is sound or video in one, or a column whose name is taken.
    """
    for name, dataset in _datasets(train_dataset, eval_dataset):
        row = first_row(dataset, name)
        check_row(row, name, processing_class)
        check_reward_columns(row, name)


def has_pictures(train_dataset: Any, eval_dataset: Any) -> bool:
    """
    Whether the first row of a dataset has a column for pictures, or pictures in its prompt.

    Args:
        train_dataset, eval_dataset: As the trainer has them.
    """
    rows = (first_row(dataset, name) for name, dataset in _datasets(train_dataset, eval_dataset))
    return any(picture_columns(row) or "image" in block_types(row) for row in rows)


def check_reward_columns(row: dict[str, Any], where: str) -> None:
    """
    Refuse a column of the name under which reward functions get the turns.

    Args:
        row (`dict`): One of a dataset.
        where (`str`): What to call the dataset in an error.

    Raises:
        ValueError: If it has a column `turns`.
    """
    if "turns" in row:
        raise ValueError(
            f"{where} has a column 'turns', and reward functions get the turns of each rollout by that name: rename the column."
        )


def check_answer_columns(column: str, train_dataset: Any, eval_dataset: Any, environment_factory: Any) -> None:
    """
    Refuse datasets without true answers.

    Args:
        column (`str`): The option `answer_column`.
        train_dataset, eval_dataset, environment_factory: As the trainer has them.

    Raises:
        ValueError: If the column is missing, or its first cell is no answer.
    """
    if train_dataset is None and environment_factory is None:
        raise ValueError(
            f"Information gain needs the true answers: give a train_dataset with the column {column!r}, or choose an "
            "advantage_estimator that needs none, such as 'grpo'."
        )
    for name, dataset in _datasets(train_dataset, eval_dataset):
        row = first_row(dataset, name)
        if column not in row and environment_factory is not None:
            continue  # environments may give the answers, once they are reset
        if column not in row:
            raise ValueError(
                f"{name} has no column {column!r} with the true answers; its columns are {sorted(row)}. Set "
                "answer_column to one of them, or choose an advantage_estimator that needs none, such as 'grpo'."
            )
        scored_answers(row[column], f"{column!r} of the first row of {name}")


def prompts_are_conversational(dataset: Any) -> bool:
    """Whether prompts are lists of messages, by the first row."""
    row = {} if dataset is None else first_row(dataset, "train_dataset")
    return "prompt" not in row or is_chat(row)  # without a prompt, an environment writes the conversation


def first_row(dataset: Any, name: str) -> dict[str, Any]:
    """The first row of a dataset; raises a ValueError if it is empty, and a TypeError if it holds something else."""
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{name} is empty.")
    if not isinstance(row, Mapping):
        raise TypeError(
            f"{name} is of type {type(dataset).__name__}, and what it begins with is no row: give one Dataset, for example "
            "load_dataset(..., split='train')."
        )
    return row


def _datasets(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Any]]:
    """Those that are given, each with its name."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    named = {"train_dataset": train_dataset, **evals}
    return [(name, dataset) for name, dataset in named.items() if dataset is not None]
