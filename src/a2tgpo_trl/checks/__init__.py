"""Errors of bad input, and warnings of settings that rarely make sense, before a model is loaded."""

from collections.abc import Callable
from typing import Any

from transformers import ProcessorMixin
from trl.chat_template_utils import supports_tool_calling

from ..config import A2TGPOConfig
from .data import check_answer_columns, check_datasets, check_reward_columns, first_row, prompts_are_conversational
from .methods import check_columns, check_for_beliefs, check_reference, check_turn_rewards
from .settings import check_trainable, warn_of_settings
from .tools import (
    check_observation_limit,
    check_tool_names,
    check_tools,
    check_tree,
    check_tree_tools,
    check_trls_loop,
    checked_protocol,
)

__all__ = [
    "check_answer_columns",
    "check_arguments",
    "check_columns",
    "check_datasets",
    "check_for_beliefs",
    "check_observation_limit",
    "check_reference",
    "check_reward_columns",
    "check_tool_names",
    "check_tools",
    "check_trainable",
    "check_tree",
    "check_tree_tools",
    "check_trls_loop",
    "check_turn_rewards",
    "checked_protocol",
    "first_row",
    "prompts_are_conversational",
    "warn_of_settings",
]


def check_arguments(
    args: Any,
    train_dataset: Any,
    eval_dataset: Any,
    processing_class: Any,
    tools: list[Callable],
    environment_factory: Any,
) -> None:
    """
    Refuse arguments of the trainer that cannot work.

    Args:
        args, train_dataset, eval_dataset, processing_class, tools, environment_factory: As [`A2TGPOTrainer`] gets them.

    Raises:
        TypeError: If `args` is no [`A2TGPOConfig`], or `processing_class` is a processor or a slow tokenizer.
        ValueError: If there are pictures in the data, a tool lacks types, a docstring or a name of its own, a dataset its
            answers, or environments their template.
    """
    if not isinstance(args, A2TGPOConfig):
        raise TypeError(f"args must be an A2TGPOConfig, got {type(args).__name__}: replace the class name.")
    check_datasets(train_dataset, eval_dataset)
    if isinstance(processing_class, ProcessorMixin):
        raise TypeError(
            f"A2TGPOTrainer trains on text, and {type(processing_class).__name__} is a processor for images or audio. "
            "Leave processing_class out, or pass the processor's tokenizer."
        )
    check_tools(tools)
    if environment_factory is not None and not supports_tool_calling(processing_class):
        raise ValueError(
            "environment_factory needs a chat template that renders tool calls, with tool_protocol='tags' too: TRL builds "
            "environments only for such templates. Set one on the tokenizer, or pass tools instead."
        )
    if "beliefs" in args.signals:
        check_for_beliefs(args, train_dataset, eval_dataset, processing_class, environment_factory)
