"""TRL's chat templates that render tool calls, with the tiny tokenizer and TRL's own code around them."""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import trl
from tokenizers import AddedToken
from trl import GRPOTrainer
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
    """TRL's `_get_tool_suffix_ids` as its trainer would call it."""
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        _is_vlm=False,
        chat_template=training_template(tokenizer),
        chat_template_kwargs={},
    )
    return lambda messages: GRPOTrainer._get_tool_suffix_ids(trainer, messages)


def make_protocol(tokenizer, **options):
    return ChatProtocol(tokenizer, trl_observation_ids(tokenizer), **options)


def result(content, name="search"):
    return {"role": "tool", "name": name, "content": content}
