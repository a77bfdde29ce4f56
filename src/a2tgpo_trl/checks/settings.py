"""Options that do not work together as intended, and models that cannot be trained."""

from dataclasses import fields

from torch import nn
from transformers.utils import logging

from ..config import LOOP_OPTIONS, A2TGPOConfig

logger = logging.get_logger(__name__)


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
    if args.importance_sampling_level in ("turn", "sequence") and args.loss_type != "cispo" and widest >= 0.1:
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
