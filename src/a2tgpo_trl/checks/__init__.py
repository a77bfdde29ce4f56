"""Errors of bad input, and warnings of settings that rarely make sense, before a model is loaded."""

from collections.abc import Callable
from typing import Any

from trl.chat_template_utils import supports_tool_calling

from ..config import A2TGPOConfig
from .data import (
    check_answer_columns,
    check_datasets,
    check_reward_columns,
    first_row,
    has_pictures,
    prompts_are_conversational,
)
from .methods import check_columns, check_for_beliefs, check_reference, check_turn_rewards
from .pictures import check_processor, check_prompts
from .settings import check_trainable, warn_of_settings
from .tools import (
    check_observation_limit,
    check_tags_are_told,
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
    "check_prompts",
    "check_reference",
    "check_reward_columns",
    "check_tags_are_told",
    "check_tool_names",
    "check_tools",
    "check_trainable",
    "check_tree",
    "check_tree_tools",
    "check_trls_loop",
    "check_turn_rewards",
    "checked_protocol",
    "first_row",
    "has_pictures",
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
        TypeError: If `args` is no [`A2TGPOConfig`], `processing_class` is a processor of an unknown family or a slow tokenizer, or
            there are pictures in the data and it is a tokenizer.
        ValueError: If there is sound or video in the data, a tool lacks types, a docstring or a name of its own, a dataset its
            answers, or environments their template.
    """
    if not isinstance(args, A2TGPOConfig):
        raise TypeError(f"args must be an A2TGPOConfig, got {type(args).__name__}: replace the class name.")
    check_processor(processing_class)
    check_datasets(train_dataset, eval_dataset, processing_class)
    check_tools(tools)
    if environment_factory is not None and not supports_tool_calling(processing_class):
        raise ValueError(
            "environment_factory needs a chat template that renders tool calls, with tool_protocol='tags' too: TRL builds "
            "environments only for such templates. Set one on the tokenizer, or pass tools instead."
        )
    if "beliefs" in args.signals:
        check_for_beliefs(args, train_dataset, eval_dataset, processing_class, environment_factory)
