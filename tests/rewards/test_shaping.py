"""Shaped outcome rewards, by hand."""

import difflib
import inspect
import json

import pytest
from PIL import Image

from a2tgpo_trl.rewards import exact_match_reward, similarity_shaped
from a2tgpo_trl.rollout import Turn


def rollout(*texts):
    return [Turn([1], {"role": "assistant", "content": text}) for text in texts]


def shared(left, right):
    """Share of equal characters, place by place."""
    return sum(a == b for a, b in zip(left, right, strict=False)) / max(len(left), len(right))


def given(*rewards):
    def reward(**columns):
        return list(rewards)

    return reward


def test_failed_rollouts_get_half_of_their_likeness_to_those_that_passed():
    turns = [rollout("abcd"), rollout("abxx"), rollout("axxx"), rollout("zzzz")]
    # to "abcd" and "abxx": "axxx" has 1/4 and 3/4, mean 1/2, half of it 1/4; "zzzz" has 0
    shaped = similarity_shaped(given(1.0, 1.0, 0.0, 0.0), shared)
    assert shaped(prompts=["q"] * 4, turns=turns) == [1.0, 1.0, 0.25, 0.0]
    whole = similarity_shaped(given(1.0, 1.0, 0.0, 0.0), shared, weight=1.0)
    assert whole(prompts=["q"] * 4, turns=turns) == [1.0, 1.0, 0.5, 0.0]


def test_a_reward_is_never_lowered():
    shaped = similarity_shaped(given(1.0, 0.4, 0.1), shared)
    # half of 3/4 is 0.375: below 0.4, above 0.1
    turns = [rollout("abcd"), rollout("abcx"), rollout("abcx")]
    assert shaped(prompts=["q"] * 3, turns=turns) == [1.0, 0.4, 0.375]


def test_prompts_with_equal_pictures_are_equal():
    def prompt():  # as a dataset decodes it, anew for each row
        return [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (8, 8), "red")}]}]

    shaped = similarity_shaped(given(1.0, 0.0), shared)
    assert shaped(prompts=[prompt(), prompt()], turns=[rollout("abcd"), rollout("abcd")]) == [1.0, 0.5]


def test_nothing_passed_and_nothing_scored_stay_as_they_are():
    shaped = similarity_shaped(given(0.0, 0.5, None, 1.0, None), shared)
    turns = [rollout("abcd")] * 5
    assert shaped(prompts=["q", "q", "r", "r", "r"], turns=turns) == [0.0, 0.5, None, 1.0, None]


def test_prompts_are_apart_whether_text_or_messages():
    asked = [[{"role": "user", "content": text}] for text in ("q", "r")]
    shaped = similarity_shaped(given(1.0, 0.0, 0.0), shared)
    turns = [rollout("abcd"), rollout("abcd"), rollout("abcd")]
    assert shaped(prompts=[asked[0], asked[0], asked[1]], turns=turns) == [1.0, 0.5, 0.0]


def test_all_turns_are_compared():
    seen = []
    shaped = similarity_shaped(given(1.0, 0.0), lambda left, right: seen.append((left, right)) or 1.0)
    assert shaped(prompts=["q"] * 2, turns=[rollout("a", "b"), rollout("c")]) == [1.0, 0.5]
    assert seen == [("c", "a\nb")]


def test_it_has_the_name_of_the_reward_and_no_coroutines():
    assert similarity_shaped(exact_match_reward, shared).__name__ == "exact_match_reward"

    async def slow(**columns):
        return []

    with pytest.raises(TypeError, match="takes a function, and slow is a coroutine function"):
        similarity_shaped(slow, shared)


def as_json(call):
    return json.dumps({"arguments": call.arguments, "name": call.name})


def test_in_training(build):
    """The wrong answer of the four gets a share; its text is all that it wrote, and what it called."""

    def likeness(left, right):
        return difflib.SequenceMatcher(None, left, right).ratio()

    shaped = similarity_shaped(exact_match_reward, likeness)
    assert "turns" in inspect.signature(shaped, follow_wrapped=False).parameters
    trainer = build(advantage_estimator="gtpo", reward=shaped, per_device_eval_batch_size=4)
    played = trainer.play([dict(trainer.train_dataset[0])], num_generations=4)
    texts = [
        "\n".join(line for turn in own.turns for line in (turn.text, *map(as_json, turn.calls))) for own in played
    ]
    expected = 0.5 * sum(likeness(texts[0], text) for text in texts[1:]) / 3
    assert [own.reward for own in played] == pytest.approx([expected, 1.0, 1.0, 1.0]) and expected > 0
