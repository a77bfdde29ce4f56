"""How a model would be trained: how it calls tools, and what of it can be shared or kept."""

from accelerate import Accelerator
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl import ModelConfig

from ...rollout import why_no_history
from ...rollout.protocols.base import choose_protocol, why_no_chat_calls
from ...signals.beliefs.scoring import BeliefScorer
from ..methods import at_defaults
from ..models import ModelSource, find_model
from .findings import Finding, short
from .packages import in_words


def look(folder: str) -> list[Finding]:
    """
    What a model in a folder is, and what the library makes of it.

    Args:
        folder (`str`): Of a model or an adapter. Its weights are not read into memory.
    """
    config, options = at_defaults("a2tgpo"), ModelConfig(model_name_or_path=folder)
    config.model_init_kwargs = {"device_map": "meta"}
    try:
        source = find_model(options, config)
        tokenizer, model = source.tokenizer(), source.load(options, is_trainable=True)
    except Exception as error:  # whatever a damaged folder raises
        return [Finding("folder", short(folder), False, f"cannot be loaded ({in_words(error)})", required=True)]
    scorer = BeliefScorer(model, tokenizer, Accelerator(), config, config.max_completion_length)
    no_history = why_no_history(model, GenerationConfig())
    no_sharing = scorer.why_no_shared_forward(model.train())
    return [
        Finding("folder", short(folder), note=_adapter(source)),
        Finding("family", model.config.model_type, note=_size(model)),
        *_calls(tokenizer),
        _kept("histories", "kept between turns", "read again at each turn", no_history),
        _kept("beliefs", "share the forward of the old log-probabilities", "take forwards of their own", no_sharing),
    ]


def _adapter(source: ModelSource) -> str:
    return f"an adapter of {short(source.base)}" if source.base else ""


def _size(model: nn.Module) -> str:
    numbers = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{numbers / 1e6:,.1f} M parameters" + (
        f", {trained / 1e6:,.1f} M of them trained" if trained < numbers else ""
    )


def _calls(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """How tools are called, with prompts of either kind."""
    if tokenizer.chat_template is None:
        template = Finding("chat template", "none", note="prompts are plain text")
    else:
        reason = why_no_chat_calls(tokenizer, conversational=True)
        template = Finding("chat template", "there", not reason, reason or "TRL can parse its tool calls")
    protocols = [f"{choose_protocol('auto', tokenizer, conversational=False)} for plain text"]
    if tokenizer.chat_template is not None:
        protocols.insert(0, f"{choose_protocol('auto', tokenizer, conversational=True)} for chat messages")
    return [template, Finding("tool_protocol", "auto", note=", ".join(protocols))]


def _kept(name: str, yes: str, no: str, reason: str | None) -> Finding:
    return Finding(name, no if reason else yes, not reason, reason or "")
