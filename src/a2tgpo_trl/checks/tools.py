"""What is refused of tools, protocols and loops."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import get_json_schema, logging

from ..config import A2TGPOConfig
from ..rollout import STATE_KEY, TagProtocol, ToolProtocol, choose_protocol, why_no_chat_calls
from .data import first_row, prompts_are_conversational

logger = logging.get_logger(__name__)


def check_tools(tools: list[Callable]) -> None:
    """
    Refuse tools that cannot be called.

    Args:
        tools (`list[Callable]`): Functions.

    Raises:
        ValueError: If one lacks types, a docstring or a name of its own.
    """
    for tool in tools:
        try:
            get_json_schema(tool)
        except Exception as error:
            name = getattr(tool, "__name__", repr(tool))
            raise ValueError(
                f"Tool {name!r} needs type hints and a Google-style docstring that describes each argument: {error}"
            ) from error
    check_tool_names(tools)


def check_tool_names(tools: list[Callable]) -> None:
    """
    Refuse two tools of the same name in one rollout.

    Args:
        tools (`list[Callable]`): Functions, and methods of the rollout's environment.

    Raises:
        ValueError: If two have one name.
    """
    for name, count in Counter(tool.__name__ for tool in tools).items():
        if count > 1:
            owners = ", ".join(tool.__qualname__ for tool in tools if tool.__name__ == name)
            raise ValueError(
                f"{count} tools are called {name!r} ({owners}), and a call identifies a tool by its name only. Rename one: a "
                f"search by its method as_tool('{name}_news', 'news'), another tool by renaming the function or method."
            )


def checked_protocol(
    args: A2TGPOConfig, processing_class: Any, train_dataset: Any, tools: list[Callable], environment_factory: Any
) -> str | None:
    """
    How the model calls tools.

    Args:
        args, processing_class, train_dataset, tools, environment_factory: As the trainer has them.

    Returns:
        `str` or `None`: `"chat"` or `"tags"`; `None` if there is nothing to call.

    Raises:
        ValueError: If the protocol cannot work with this chat template, these prompts, these tools or TRL's own loop.
    """
    if not tools and not environment_factory:
        return None
    protocol = choose_protocol(args.tool_protocol, processing_class, prompts_are_conversational(train_dataset))
    if protocol == "chat":
        return protocol
    if args.tool_loop == "trl":
        raise ValueError(
            "tool_loop='trl' knows the chat template's calls only, and these prompts or this chat template leave nothing but "
            "tags: give conversational prompts and a chat template whose calls TRL knows, or choose tool_loop='a2tgpo'."
        )
    if environment_factory is None:
        check_tags_are_told(args, processing_class, train_dataset, tools)
        TagProtocol(processing_class, tools, args.tool_tags, args.result_tag)  # refuses what it cannot call
    return protocol


def check_tags_are_told(args: A2TGPOConfig, processing_class: Any, train_dataset: Any, tools: list[Callable]) -> None:
    """
    Check that the prompt mentions the text tags that `tool_protocol="auto"` chose: nothing else tells the model about them.

    Args:
        args, processing_class, train_dataset: As the trainer has them.
        tools (`list[Callable]`): All tools, those of environments too.

    Raises:
        ValueError: If prompts are conversational, and the first one mentions no tag. Of plain text it warns: a model that
            is no chat model may have learnt the tags.
    """
    row = {} if train_dataset is None else first_row(train_dataset, "train_dataset")
    if args.tool_protocol != "auto" or "prompt" not in row:  # which an environment writes
        return
    conversational = prompts_are_conversational(train_dataset)
    tags = [(args.tool_tags or {}).get(tool.__name__, tool.__name__) for tool in tools]
    choice = f"tool_protocol='auto' calls tools by text tags, because {why_no_chat_calls(processing_class, conversational)}."
    if any(f"<{tag}>" in str(row["prompt"]) for tag in tags):
        logger.info(choice)
        return
    calls = ", ".join(f"<{tag}>…</{tag}>" for tag in tags)
    result = f"<{args.result_tag}>…</{args.result_tag}>"
    message = (
        f"{choice} Then only the prompt can tell the model of its tools, and the first one mentions no tag. Write into it "
        f"that tools are called by {calls} and answer in {result}, or give the tokenizer a chat template whose calls TRL "
        "can parse. If the model knows the tags already, set tool_protocol='tags'."
    )
    if conversational:
        raise ValueError(message)
    logger.warning(message)


def check_observation_limit(limit: int, protocol: ToolProtocol, tool_name: str) -> None:
    """
    Refuse a limit that no observation can keep.

    Args:
        limit (`int`): The option `max_observation_tokens`.
        protocol ([`~rollout.ToolProtocol`]): Writes observations.
        tool_name (`str`): A tool whose results there will be.

    Raises:
        ValueError: If markup and the note of a cut take more tokens.
    """
    _, ids = protocol.observe([{"role": "tool", "name": tool_name, "content": "long " * 10 * limit}], limit)
    if len(ids) > limit:
        raise ValueError(
            f"max_observation_tokens={limit} has no room for the markup of a result and the note that it was cut, which "
            f"take {len(ids)} tokens: set it well above that, or to None."
        )


def check_trls_loop(args: A2TGPOConfig, config: PretrainedConfig, tools: list[Callable]) -> None:
    """
    Refuse what TRL's own loop cannot do.

    Args:
        args ([`A2TGPOConfig`]): The options.
        config (`PretrainedConfig`): Of the model.
        tools (`list[Callable]`): All that a model may call.

    Raises:
        ValueError: If the configuration itself has no `max_position_embeddings`: models for pictures have it in the part for
            text, models without attention often nowhere. Or if states are to be read of environments.
    """
    if "states" in args.signals and any(tool.__name__ == STATE_KEY for tool in tools or []):
        raise ValueError(
            f"tool_loop='trl' asks no environment for its {STATE_KEY}(), and advantage_estimator={args.advantage_estimator!r} "
            "compares states: choose tool_loop='a2tgpo'."
        )
    if not hasattr(config, "max_position_embeddings"):
        raise ValueError(
            f"tool_loop='trl' cannot play {config.model_type}: TRL reads max_position_embeddings from the model's configuration, "
            f"and {type(config).__name__} itself has none. Choose tool_loop='a2tgpo'."
        )


def check_tree_tools(args: A2TGPOConfig, tools: list[Callable]) -> None:
    """
    Refuse a tree of rollouts that can call nothing, as with an environment whose only method is `reset`.

    Args:
        args ([`A2TGPOConfig`]): The options.
        tools (`list[Callable]`): All tools, those of environments too.

    Raises:
        ValueError: If there is none.
    """
    if args.tree_chains is not None and not tools:
        raise ValueError(
            f"tree_chains={args.tree_chains} lets rollouts begin with the turns of others, and without tools a rollout is one turn: "
            "give tools or an environment that has some, or leave it out."
        )


def check_tree(args: A2TGPOConfig, protocol: str | None, rollout_func: Callable | None) -> None:
    """
    Refuse a tree that nothing would grow.

    Args:
        args ([`A2TGPOConfig`]): The options.
        protocol (`str`, *optional*): The tool protocol, if there are tools.
        rollout_func (`Callable`, *optional*): As [`A2TGPOTrainer`] gets it.

    Raises:
        ValueError: If there are no tools, or a function of the user's plays rollouts.
    """
    if args.tree_chains is None:
        return
    if rollout_func is not None:
        raise ValueError(
            f"tree_chains={args.tree_chains} has no effect on rollouts that a rollout_func plays: leave one of them out."
        )
    if protocol is None:
        check_tree_tools(args, [])
