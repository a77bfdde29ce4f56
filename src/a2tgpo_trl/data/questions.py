"""Questions in memory: splits by entity, and the way to a TRL dataset."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .examples import texts
from .prompts import DEFAULT_TEMPLATE, PromptForm

if TYPE_CHECKING:
    from datasets import Dataset

KEPT_COLUMNS = ("question", "kind", "country")


def split_by_entity(
    questions: Sequence[dict], key: str = "country", held_out: float = 0.2, seed: int = 0
) -> tuple[list[dict], list[dict]]:
    """Split questions so that no entity is in both parts; a split by question would let entities recur.

    Args:
        questions (`Sequence[dict]`):
            The questions.
        key (`str`, *optional*, defaults to `"country"`):
            The key that holds the entity.
        held_out (`float`, *optional*, defaults to `0.2`):
            Share of the entities, not of the questions, that is held out, rounded to at least one on either side.
        seed (`int`, *optional*, defaults to `0`):
            Which entities those are. They do not depend on the order of the questions.

    Returns:
        `tuple[list[dict], list[dict]]`: the questions to train on and those held out, each in the order given.

    Raises:
        `ValueError`: a question lacks the key, `held_out` is not between 0 and 1, or there are not two entities.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the entities, so give a number between 0 and 1.")
    values = [_get(question, key, index) for index, question in enumerate(questions)]
    entities = sorted(set(values))
    if len(entities) < 2:
        raise ValueError(f"Splitting takes two values of {key!r} at least; the questions have {entities}.")
    number = min(max(round(held_out * len(entities)), 1), len(entities) - 1)
    chosen = set(random.Random(seed).sample(entities, number))
    train = [question for question, value in zip(questions, values, strict=True) if value not in chosen]
    return train, [question for question, value in zip(questions, values, strict=True) if value in chosen]


def to_dataset(
    questions: Sequence[dict], prompt_template: str = DEFAULT_TEMPLATE, conversational: bool = False
) -> "Dataset":
    """Turn questions into a dataset for a TRL trainer and the rewards of this package.

    Args:
        questions (`Sequence[dict]`):
            Dicts with `"question"` and `"answer"`, which is a text or a list of aliases.
        prompt_template (`str`, *optional*, defaults to `"Question: {question}\\n"`):
            The prompt; `{question}` stands for the question, and other braces for themselves.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompts are lists of one user message instead of texts.

    Returns:
        `Dataset`: the columns `prompt` and `answer` (a list of aliases), and those of `question`, `kind` and `country`
        that all questions have.

    Raises:
        `ValueError`: a question lacks `"question"` or `"answer"`, an answer is no text or list of them, or
            `prompt_template` has no place for the question.
    """
    from datasets import Dataset

    prompts = PromptForm(prompt_template, conversational)
    kept = [column for column in KEPT_COLUMNS if all(column in question for question in questions)]
    rows = []
    for index, question in enumerate(questions):
        rows.append(
            {
                "prompt": prompts.fill(_get(question, "question", index)),
                "answer": texts(_get(question, "answer", index), f"questions[{index}]: 'answer'"),
                **{column: question[column] for column in kept},
            }
        )
    return Dataset.from_list(rows)


def _get(question: dict, key: str, index: int) -> str | list[str]:
    """Read a key, or say which question lacks it and what it has."""
    if key not in question:
        raise ValueError(f"questions[{index}] has no {key!r}; it has {sorted(question)}.")
    return question[key]
