"""Errors of bad input, and warnings of settings that rarely make sense, before a model is loaded."""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import PretrainedConfig, ProcessorMixin
from transformers.utils import get_json_schema, logging
from trl.chat_template_utils import supports_tool_calling
from trl.data_utils import is_conversational

from .config import LOOP_OPTIONS, A2TGPOConfig
from .credit import ESTIMATORS, Estimator
from .records import SCHEMA
from .records.tables import TABLE_COLUMNS
from .rollout import TagProtocol, ToolProtocol, choose_protocol, why_no_chat_calls
from .signals.beliefs import scored_answers

logger = logging.get_logger(__name__)


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
    for name, dataset in _datasets(train_dataset, eval_dataset):
        _check_pictures(_first_row(dataset, name), name)
    if isinstance(processing_class, ProcessorMixin):
        raise TypeError(
            f"A2TGPOTrainer trains on text, and {type(processing_class).__name__} is a processor for images or audio. "
            "Leave processing_class out, or pass the processor's tokenizer."
        )
    for name, dataset in _datasets(train_dataset, eval_dataset):
        check_reward_columns(_first_row(dataset, name), name)
    _check_tools(tools)
    if environment_factory is not None and not supports_tool_calling(processing_class):
        raise ValueError(
            "environment_factory needs a chat template that renders tool calls, with tool_protocol='tags' too: TRL builds "
            "environments only for such templates. Set one on the tokenizer, or pass tools instead."
        )
    if "beliefs" in args.signals:
        _check_for_beliefs(args, train_dataset, eval_dataset, processing_class, environment_factory)


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
            f"{name} compares the rewards of turns, and there are none: give the trainer turn_reward_funcs, functions "
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


def _check_for_beliefs(
    args: A2TGPOConfig, train_dataset: Any, eval_dataset: Any, processing_class: Any, environment_factory: Any
) -> None:
    if not processing_class.is_fast:
        raise TypeError(
            f"Information gain finds the answer's tokens by character offsets, which {type(processing_class).__name__} "
            "does not give: use a fast tokenizer, or choose an advantage_estimator that needs no answers, such as 'grpo'."
        )
    _check_answer_columns(args.answer_column, train_dataset, eval_dataset, environment_factory)


def _check_answer_columns(column: str, train_dataset: Any, eval_dataset: Any, environment_factory: Any) -> None:
    if train_dataset is None:
        raise ValueError(
            f"Information gain needs the true answers: give a train_dataset with the column {column!r}, or choose an "
            "advantage_estimator that needs none, such as 'grpo'."
        )
    for name, dataset in _datasets(train_dataset, eval_dataset):
        row = _first_row(dataset, name)
        if column not in row and environment_factory is not None:
            continue  # environments may give the answers, once they are reset
        if column not in row:
            raise ValueError(
                f"{name} has no column {column!r} with the true answers; its columns are {sorted(row)}. Set "
                "answer_column to one of them, or choose an advantage_estimator that needs none, such as 'grpo'."
            )
        scored_answers(row[column], f"{column!r} of the first row of {name}")


def _datasets(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Any]]:
    """Those that are given, each with its name."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    named = {"train_dataset": train_dataset, **evals}
    return [(name, dataset) for name, dataset in named.items() if dataset is not None]


def _check_pictures(row: dict[str, Any], dataset: str) -> None:
    if columns := [column for column in ("image", "images") if column in row]:
        raise ValueError(
            f"{dataset} has the column {columns[0]!r}, and A2TGPOTrainer trains on text: pictures are not supported. Where the "
            f"text is enough, remove it: dataset.remove_columns({columns[0]!r})."
        )
    messages = row["prompt"] if is_conversational(row) else []
    contents = [content for message in messages if isinstance(content := message.get("content"), list)]
    kinds = [block.get("type") for content in contents for block in content if isinstance(block, dict)]
    if other := [kind for kind in kinds if kind != "text"]:
        raise ValueError(
            f"The prompt of the first row of {dataset} has a block of type {other[0]!r} in it, and A2TGPOTrainer trains on "
            "text: give blocks of type 'text', or texts."
        )


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


def _check_tools(tools: list[Callable]) -> None:
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


def check_trainable(model: nn.Module) -> None:
    """
    Refuse to train a model that has nothing to train.

    Args:
        model (`nn.Module`): The policy.

    Raises:
        ValueError: If no parameter of it requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter of the model is trainable, so training would change nothing. Load an adapter with "
            "PeftModel.from_pretrained(model, adapter, is_trainable=True), pass a peft_config for a new one, or set "
            "requires_grad on the parameters to train."
        )


def checked_protocol(
    args: A2TGPOConfig, tokenizer: Any, train_dataset: Any, tools: list[Callable], environment_factory: Any
) -> str | None:
    """
    How the model calls tools.

    Args:
        args, tokenizer, train_dataset, tools, environment_factory: As the trainer has them.

    Returns:
        `str` or `None`: `"chat"` or `"tags"`; `None` if there is nothing to call.

    Raises:
        ValueError: If the protocol cannot work with this tokenizer, these prompts, these tools or TRL's own loop.
    """
    if not tools and not environment_factory:
        return None
    protocol = choose_protocol(args.tool_protocol, tokenizer, prompts_are_conversational(train_dataset))
    if protocol == "chat":
        return protocol
    if args.tool_loop == "trl":
        raise ValueError(
            "tool_loop='trl' knows the chat template's calls only, and these prompts or this chat template leave nothing but "
            "tags: give conversational prompts and a chat template whose calls TRL knows, or choose tool_loop='a2tgpo'."
        )
    if args.tool_protocol == "auto":
        _check_tags_are_told(args, tokenizer, train_dataset, tools)
    if environment_factory is None:
        TagProtocol(tokenizer, tools, args.tool_tags, args.result_tag)  # refuses what it cannot call
    return protocol


def check_context_for_trls_loop(config: PretrainedConfig) -> None:
    """
    Refuse models whose length of context TRL's own loop does not find.

    Args:
        config (`PretrainedConfig`): Of the model.

    Raises:
        ValueError: If the configuration itself has no `max_position_embeddings`: models for pictures have it in the part for
            text, models without attention often nowhere.
    """
    if not hasattr(config, "max_position_embeddings"):
        raise ValueError(
            f"tool_loop='trl' cannot play {config.model_type}: TRL reads max_position_embeddings from the model's configuration, "
            f"and {type(config).__name__} itself has none. Choose tool_loop='a2tgpo'."
        )


def _check_tags_are_told(args: A2TGPOConfig, tokenizer: Any, train_dataset: Any, tools: list[Callable]) -> None:
    """
    Check that the prompt mentions the text tags that `tool_protocol="auto"` chose: nothing else tells the model about them.

    Args:
        args, tokenizer, train_dataset, tools: As the trainer has them.

    Raises:
        ValueError: If prompts are conversational, and the first one mentions no tag. Of plain text it warns: a model that
            is no chat model may have learnt the tags.
    """
    row = {} if train_dataset is None else _first_row(train_dataset, "train_dataset")
    conversational = prompts_are_conversational(train_dataset)
    tags = [(args.tool_tags or {}).get(tool.__name__, tool.__name__) for tool in tools]
    choice = f"tool_protocol='auto' calls tools by text tags, because {why_no_chat_calls(tokenizer, conversational)}."
    if any(f"<{tag}>" in str(row.get("prompt")) for tag in tags):
        logger.info(choice)
        return
    calls = ", ".join(f"<{tag}>…</{tag}>" for tag in tags) or "<name>…</name> with the name of a method"
    result = f"<{args.result_tag}>…</{args.result_tag}>"
    message = (
        f"{choice} Then only the prompt can tell the model of its tools, and the first one mentions no tag. Write into it "
        f"that tools are called by {calls} and answer in {result}, or give the tokenizer a chat template whose calls TRL "
        "can parse. If the model knows the tags already, set tool_protocol='tags'."
    )
    if conversational:
        raise ValueError(message)
    logger.warning(message)


def warn_of_settings(args: A2TGPOConfig, protocol: str | None) -> None:
    """
    Warn about options that are valid but do not work together as intended.

    Args:
        args ([`A2TGPOConfig`]): The options.
        protocol (`str`, *optional*): The tool protocol, `"chat"` or `"tags"`, if there are tools.
    """
    if args.estimator.off_policy and args.every_update_is_on_policy:
        logger.warning(
            "Every update will be on-policy: the importance ratio is 1 and no clip range ever binds, so epsilon and "
            "turn_clip_strength do nothing. For several updates per rollout batch set steps_per_generation "
            f"({args.steps_per_generation} now) above gradient_accumulation_steps ({args.gradient_accumulation_steps}), "
            "or num_iterations above 1."
        )
    widest = max(args.epsilon, args.epsilon_high or 0.0)
    if args.importance_sampling_level != "token" and args.loss_type != "cispo" and widest >= 0.1:
        logger.warning(
            f"epsilon={args.epsilon} and epsilon_high={args.epsilon_high} suit the ratio of a token; the ratio of a "
            f"{args.importance_sampling_level} moves far less and will hardly ever reach them. Leave them unset, or set "
            "importance_sampling_level='token'."
        )
    defaults = {option.name: option.default for option in fields(args)}
    unread = [option for option in (*LOOP_OPTIONS, "tool_loop") if getattr(args, option) != defaults[option]]
    if protocol is None and unread:
        logger.warning(f"Without tools {', '.join(unread)} do nothing: a completion is one turn.")
    of_tags = [
        option for option in ("answer_stop", "tool_tags", "result_tag") if getattr(args, option) != defaults[option]
    ]
    if protocol == "chat" and of_tags:
        logger.warning(
            f"{', '.join(of_tags)} have no effect: tool_protocol='auto' chose the chat template's calls. Set "
            "tool_protocol='tags' if the model is to call tools by text tags."
        )
    if protocol == "tags" and args.mask_truncated_completions:
        logger.warning(
            "mask_truncated_completions leaves out every completion that does not end with the end-of-sequence token; "
            "with tool_protocol='tags' that includes those that end at a tool call or at a stop string."
        )
    if protocol == "tags" and args.use_transformers_continuous_batching:
        logger.warning(
            "Continuous batching knows no stop strings: with tool_protocol='tags' each turn is generated to its end and "
            "cut at the closing tag afterwards."
        )


def prompts_are_conversational(dataset: Any) -> bool:
    """Whether prompts are lists of messages, by the first row."""
    row = {} if dataset is None else _first_row(dataset, "train_dataset")
    return "prompt" not in row or is_conversational(row)  # without a prompt, an environment writes the conversation


def _first_row(dataset: Any, name: str) -> dict[str, Any]:
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{name} is empty.")
    return row
