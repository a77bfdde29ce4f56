"""Judge of beliefs in contexts with pictures: one unpadded forward for each, log-softmax over full logits."""

import inspect

import pytest
import torch

from a2tgpo_trl.signals.beliefs import make_probe
from scoring import TEMPLATE

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3"]
ONLY_PREFIXES = {"qwen3_5": "linear_attention layers", "gemma3": "sliding_attention layers"}
"""Families that cannot be run over a tree, and why."""


def contexts_of(rollout, from_turn_ends=False):
    """Token ids and pictures of each context."""
    found = [(rollout.prompt_ids, rollout.images)]
    context, images = list(rollout.prompt_ids), list(rollout.images)
    for turn in rollout.turns:
        context = context + turn.ids
        if turn.observation_ids:
            if from_turn_ends:
                found.append((context, images))
            context, images = context + turn.observation_ids, images + turn.images
            found.append((context, images))
    return found


@torch.no_grad()
def naive_belief(model, processor, context, images, answer="Paris"):
    probe = make_probe(processor.tokenizer, TEMPLATE, answer)
    tokens = torch.tensor([context + probe.ids])
    inputs = {"input_ids": tokens}
    if images:
        parameters = inspect.signature(type(model).forward).parameters
        seen = processor.image_processor(images=images, return_tensors="pt")
        inputs |= {name: value for name, value in seen.items() if name in parameters}
        types = (tokens == model.config.image_token_id).long()
        inputs |= {name: types for name in ("token_type_ids", "mm_token_type_ids") if name in parameters}
    logps = model(**inputs).logits.log_softmax(-1)[0]
    places = [len(context) + j for j, on in enumerate(probe.scored) if on]
    return sum(logps[place - 1, tokens[0, place]].item() for place in places) / len(places)


def agree(actual, expected, atol=1e-10):
    for row, values in zip(actual.tolist(), expected, strict=True):
        assert row[: len(values)] == pytest.approx(values, abs=atol)
        assert all(value != value for value in row[len(values) :])
    assert len({round(value, 6) for values in expected for value in values}) > 5  # they differ
