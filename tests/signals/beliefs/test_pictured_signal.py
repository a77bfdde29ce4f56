"""Beliefs of a trainer whose prompts and tools show pictures, against the naive loop."""

import math

import pytest
from datasets import Dataset

import tiny_vision
from conftest import QUESTION, chat_correct, search
from pictured import FAMILIES, ONLY_PREFIXES, agree, contexts_of, naive_belief

ALIASES = ["Lutetia", "Paris"]
RED, BLUE = map(tiny_vision.picture, ("red", "blue"))


def look(colour: str) -> list:
    """
    Look at something.

    Args:
        colour: Of what.

    Returns:
        What it looks like.
    """
    return [{"type": "text", "text": f"Here is {colour}:"}, {"type": "image", "image": tiny_vision.picture(colour)}]


PLAYED = [
    ["<answer>Rome</answer><|im_end|>"],
    ["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"],
    ["<look>green</look>", "<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"],
    ["<look>black</look>", "<look>green</look>", "<answer>no</answer><|im_end|>"],
]


@pytest.fixture
def pictured(build):
    """`pictured(family, **options)`: a trainer that plays two groups, of one question beside two pictures, and their rows."""

    def make(family, pictures=(RED, BLUE), model=None, **options):
        rows = [
            {
                "prompt": [{"role": "user", "content": QUESTION}],
                "images": [picture] if picture else [],
                "answer": ALIASES,
            }
            for picture in pictures
            for _ in range(4)
        ]
        options = {"steps_per_generation": len(rows) // 2, "num_iterations": 1, **options}
        trainer = build(
            PLAYED * len(pictures), model=model or tiny_vision.model(family), processing_class=tiny_vision.processor(family),
            dataset=Dataset.from_list(rows), reward=chat_correct, tools=[search, look], tool_protocol="tags", **options,
        )  # fmt: skip
        return trainer, [dict(row) for row in trainer.train_dataset]

    return make


def roll_out(trainer, rows):
    trainer.model.train()
    return trainer._roll_out([dict(row) for row in rows])


def naive_table(trainer, model, rollouts, join=lambda beliefs: beliefs[0], **options):
    model, processor = model.double().eval(), trainer.processing_class
    return [
        [
            join([naive_belief(model, processor, *context, alias) for alias in ALIASES])
            for context in contexts_of(rollout, **options)
        ]
        for rollout in rollouts
    ]


@pytest.mark.parametrize("updates", [{}, {"gradient_accumulation_steps": 4}], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beliefs_of_a_trainer_are_those_of_the_naive_loop(pictured, family, updates):
    trainer, rows = pictured(family, **updates)
    batch = roll_out(trainer, rows)
    assert (batch.shared_forward is not None) == (not updates and family not in ONLY_PREFIXES)
    assert [len(rollout.all_images) for rollout in batch.rollouts] == [1, 1, 2, 3] * 2
    beliefs = batch.turns.signals["beliefs"]
    agree(beliefs, naive_table(trainer, tiny_vision.model(family), batch.rollouts), atol=1e-4)
    assert batch.rollouts[0].prompt_ids == batch.rollouts[4].prompt_ids
    assert abs(beliefs[0, 0] - beliefs[4, 0]) > 1e-3
    trainer.train()
    assert trainer.state.global_step == 2
