"""Training on pictures: in prompts, and in what tools return. TRL is the judge, and one forward from scratch."""

import copy
from itertools import pairwise

import pytest
import torch
from datasets import Dataset, IterableDataset
from trl import GRPOConfig, GRPOTrainer

import chance
import tiny_vision
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from conftest import same, weights
from tiny_vision import picture

FAMILIES = list(tiny_vision.MODELS)
CALLING = ["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
"""Families with a chat template that calls tools."""
RED, BLUE = picture("red"), picture("blue", (32, 24))


def user(*content):
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return [{"role": "user", "content": blocks}]


def asked(text):
    return [{"role": "user", "content": text}]


ROWS = {
    "image": [{"prompt": asked("What is this?"), "image": RED}, {"prompt": asked("And this?"), "image": BLUE}],
    "images": [
        {"prompt": asked("What are these?"), "images": [RED, BLUE]},
        {"prompt": asked("What?"), "images": [BLUE]},
    ],
    "blocks": [{"prompt": user(RED, "or", BLUE, "?")}, {"prompt": user("What is", picture("green"))}],
    "text": [{"prompt": asked("What is red?")}, {"prompt": asked("And what is blue, and why?")}],
}


def by_length(completions, **kwargs):
    return [float(len(str(completion)) % 7) for completion in completions]


def settings(cls, processor, **options):
    """The same for TRL, which lets a model write placeholders of pictures, and then reads pictures that are not there."""
    placeholders = [*processor.image_token_ids, *(token for token in processor.video_token_ids if token is not None)]
    if cls is GRPOTrainer:
        options["generation_kwargs"] = {**options.get("generation_kwargs", {}), "suppress_tokens": placeholders}
    else:
        options.setdefault("advantage_estimator", "grpo")
    return options


@pytest.fixture
def trainers(config):
    """`trainers(cls, family, rows, **options)`: a trainer of a tiny model for pictures."""

    def make(cls, family, rows, reward=by_length, tools=None, ends=None, model=None, **options):
        processor = tiny_vision.processor(family)
        options = {"max_completion_length": 12, "per_device_train_batch_size": 4, **options}
        model = model or tiny_vision.model(family)
        if ends:
            model.generation_config.eos_token_id = ends
        arguments = {name: options.pop(name) for name in ("turn_reward_funcs", "environment_factory") if name in options}
        return cls(
            model,
            reward,
            config(A2TGPOConfig if cls is A2TGPOTrainer else GRPOConfig, **settings(cls, processor, **options)),
            stream(rows) if isinstance(rows[0]["prompt"][0]["content"], list) else Dataset.from_list(rows),
            processing_class=processor,
            tools=tools,
            **arguments,
        )

    return make


def stream(rows):
    """Rows as they are: Arrow knows no pictures in blocks."""
    return IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows)))


# ---- in prompts


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_grpo_is_trls_bit_for_bit(trainers, family, rows):
    trained = []
    for cls in (GRPOTrainer, A2TGPOTrainer):
        trainer = trainers(cls, family, ROWS[rows] * 4)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        trained.append((losses, weights(trainer)))
    (losses, after), (our_losses, ours) = trained
    assert our_losses == losses and same(ours, after)
    assert not same(after, dict(tiny_vision.model(family).named_parameters()))
