"""Rollouts by chance: a random model whose turns are calls by the sum of their tokens, and tools that answer by the key."""

import copy
import random

from datasets import Dataset

# Many tokens end a turn, so that random models write turns of different length, some of them empty but for the end
ENDS = [2, *range(320, 400)]
PROMPTS = [
    "Where is Lyon?",
    "Where?",
    "What is the capital of the country where Lyon is, and what is its currency?",
    "I",
]
PROMPTS += ["Who?", "Question: What is the currency of Japan?"]


def look(key: int) -> str:
    """
    Look something up.

    Args:
        key: Where to look.
    """
    return " ".join(
        random.Random(key).choices(["Lyon", "is", "in", "France", "capital", "of", "東京", "é"], k=key % 31)
    )


def calls_by_sum(tokenizer, ids, prefix=None, tools=None):
    """A parser that finds a call in most turns, and sometimes two: a random model never writes one."""
    message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
    number = sum(ids) % 7
    calls = [] if number < 2 else [sum(ids)] if number < 6 else [sum(ids), sum(ids) + 1]
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": "look", "arguments": {"key": key}}} for key in calls
        ]
    return message


def install_parser(monkeypatch) -> None:
    """Read calls by the sum of a turn's tokens, in TRL's loop and in ours."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.parse_response", calls_by_sum)
    monkeypatch.setattr("a2tgpo_trl.rollout.protocols.chat.parse_response", calls_by_sum)


def dataset() -> Dataset:
    return Dataset.from_list(rows())


def rows():
    return [{"prompt": [{"role": "user", "content": text}], "answer": "Paris"} for text in PROMPTS for _ in range(2)]


def rolled_out(trainer):
    """Prompt ids, completion ids, masks, messages, … of a batch."""
    outputs, generate = [], trainer._generate

    def keep(prompts):
        outputs.append(generate(prompts))
        return copy.deepcopy(outputs[0])

    trainer._generate = keep
    trainer._generate_and_score_completions(rows())
    return outputs[0]
