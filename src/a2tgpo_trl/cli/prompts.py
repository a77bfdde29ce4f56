"""The prompt where neither the data nor an option gives one: it says how tools are called and how to answer."""

import inspect
from collections.abc import Callable, Sequence

from .. import A2TGPOConfig
from ..data.prompts import DEFAULT_TEMPLATE
from ..rollout import choose_protocol


def default_template(tools: Sequence[Callable], tokenizer, conversational: bool, config: A2TGPOConfig) -> str:
    """
    A prompt template.

    Args:
        tools (`Sequence[Callable]`): What the model may call.
        tokenizer (`PreTrainedTokenizerBase`): The model's; its chat template may decide on the tool protocol.
        conversational (`bool`): Whether prompts are lists of messages.
        config ([`A2TGPOConfig`]): Names tags, and the form of answers.

    Returns:
        `str`: with `{question}` where the question goes.

    Raises:
        ValueError: If the tool protocol cannot work with this tokenizer and these prompts.
    """
    answer = config.answer_template.replace("{answer}", "…")
    if not tools:
        return f"Answer the question in the form {answer}\n{DEFAULT_TEMPLATE}"
    if choose_protocol(config.tool_protocol, tokenizer, conversational) == "chat":
        how = "Use the tools, as often as you need."
    else:
        calls = "\n".join(_call(tool, config.tool_tags or {}) for tool in tools)
        how = f"Use the tools, as often as you need, by writing\n{calls}\nResults stand between <{config.result_tag}> and </{config.result_tag}>."
    return f"Answer the question. {how} Then write your answer in the form {answer}\n{DEFAULT_TEMPLATE}"


def _call(tool: Callable, tags: dict[str, str]) -> str:
    """How a tool is called by its tag, and the first line of its documentation."""
    name = getattr(tool, "__name__", type(tool).__name__)
    tag, argument = tags.get(name, name), next(iter(inspect.signature(tool).parameters), "input")
    purpose = (inspect.getdoc(tool) or "").partition("\n")[0]
    return f"<{tag}>{argument}</{tag}>" + f": {purpose}" * bool(purpose)
