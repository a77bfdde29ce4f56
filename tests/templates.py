"""TRL's chat templates that render tool calls, with the tiny tokenizer and TRL's own code around them."""

import re
import tempfile
from functools import cache
from pathlib import Path

import trl
from datasets import Dataset
from tokenizers import AddedToken
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import (
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

import tiny
from a2tgpo_trl.rollout import ChatProtocol

FOLDER = Path(trl.__file__).parent / "chat_templates"


@cache
def template_names():
    names = []
    for path in sorted(FOLDER.glob("*.jinja")):
        if supports_tool_calling(tiny.tokenizer(path.read_text())):
            names.append(path.stem)
    return [name for name in names if name != "deepseekv3"]  # takes arguments as text, which TRL does not write


def source_tags(name):
    """Tag-like strings in the source of a template, found otherwise than the library finds them."""
    source = re.sub(r"{#.*?#}", "", (FOLDER / f"{name}.jinja").read_text(), flags=re.DOTALL)
    return sorted(set(re.findall(r"</?\w+>|<\|\"\|>|<\|?[\w/]+\|?>|<｜[^<>\s]+｜>", source)))


def make_tokenizer(name, kind):
    """`"text"`: the tags of the template are text; `"tokens"`: they are tokens, special ones and others."""
    tokenizer = tiny.tokenizer((FOLDER / f"{name}.jinja").read_text())
    if kind == "tokens":
        tags = source_tags(name)
        tokenizer.add_tokens([AddedToken(tag, special="|" in tag or "｜" in tag, normalized=False) for tag in tags])
    return tokenizer


def training_template(tokenizer):
    """The template that TRL's trainer takes instead of the tokenizer's own; `None`: that one."""
    return None if is_chat_template_prefix_preserving(tokenizer) else get_training_chat_template(tokenizer)


def trl_observation_ids(tokenizer):
    """TRL's `_get_tool_suffix_ids`, of a trainer with this tokenizer."""
    settings = {
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "num_generations": 2,
        "per_device_train_batch_size": 2,
    }
    trainer = GRPOTrainer(
        model=_model(),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(tempfile.mkdtemp(), **settings),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "?"}]}]),
        processing_class=tokenizer,
    )
    # With tools TRL chooses so itself, but refuses its own templates for training
    trainer.chat_template = training_template(tokenizer)
    return trainer._get_tool_suffix_ids


@cache
def _model():
    return tiny.model(vocab_size=1024)


def make_protocol(tokenizer, **options):
    return ChatProtocol(tokenizer, trl_observation_ids(tokenizer), **options)


def result(content, name="search"):
    return {"role": "tool", "name": name, "content": content}
