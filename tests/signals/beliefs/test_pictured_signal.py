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


ON_POLICY = {"gradient_accumulation_steps": 4}


@pytest.mark.parametrize("updates", [{}, ON_POLICY], ids=["off-policy", "on-policy"])
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


@pytest.mark.parametrize("updates", [{}, ON_POLICY], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_a_group_without_a_picture_beside_one_with(pictured, family, updates):
    """With micro-batches of two rows, of which one has no picture at all."""
    trainer, rows = pictured(family, [None, RED], **updates)
    batch = roll_out(trainer, rows)
    assert [len(rollout.all_images) for rollout in batch.rollouts] == [0, 0, 1, 2, 1, 1, 2, 3]
    agree(batch.turns.signals["beliefs"], naive_table(trainer, tiny_vision.model(family), batch.rollouts), atol=1e-4)
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 2 and not any(map(math.isnan, losses))
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_all_aliases_from_the_turns_end(pictured):
    def join(beliefs):
        return math.log(sum(map(math.exp, beliefs)))

    trainer, rows = pictured("qwen2_5_vl", answer_aliases="logsumexp", gain_from="turn_end")
    batch = roll_out(trainer, rows)
    signals, model = batch.turns.signals, tiny_vision.model("qwen2_5_vl")
    table = naive_table(trainer, model, batch.rollouts, join, from_turn_ends=True)
    agree(signals["beliefs"], [values[::2] for values in table], atol=1e-4)
    before = zip(signals["beliefs_before_observation"].tolist(), table, strict=True)
    assert all(row[: len(values) // 2] == pytest.approx(values[1::2], abs=1e-4) for row, values in before)


@pytest.mark.parametrize("beta", [0.0, 0.1], ids=["own forwards", "shared forward"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_the_reference_of_an_adapter_sees_pictures_too(pictured, family, beta):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trainer, rows = pictured(family, belief_model="reference", beta=beta, peft_config=lora, learning_rate=0.05)
    batch = roll_out(trainer, rows)
    assert (batch.shared_forward is not None) == (beta != 0 and family not in ONLY_PREFIXES)
    expected = naive_table(trainer, tiny_vision.model(family), batch.rollouts)
    agree(batch.turns.signals["beliefs"], expected, atol=1e-4)
    adapted = naive_belief(
        trainer.model.eval(), trainer.processing_class, *contexts_of(batch.rollouts[0])[0], "Lutetia"
    )
    assert abs(adapted - expected[0][0]) > 1e-3


def test_the_reference_of_a_whole_model_stays_while_it_is_trained(pictured, tmp_path):
    tiny_vision.model("qwen2_5_vl").save_pretrained(tmp_path / "model")
    trainer, rows = pictured(
        "qwen2_5_vl", model=str(tmp_path / "model"), belief_model="reference", beta=0.1, learning_rate=0.05
    )
    before = roll_out(trainer, rows)
    trainer.train()
    after = roll_out(trainer, rows)
    for batch in (before, after):
        assert batch.shared_forward is not None
        agree(
            batch.turns.signals["beliefs"], naive_table(trainer, tiny_vision.model("qwen2_5_vl"), batch.rollouts), 1e-4
        )
    policy = naive_belief(
        trainer.model.eval(), trainer.processing_class, *contexts_of(after.rollouts[0])[0], "Lutetia"
    )
    assert abs(policy - after.turns.signals["beliefs"][0, 0].item()) > 1e-3
