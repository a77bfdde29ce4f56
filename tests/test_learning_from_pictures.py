"""A task that needs the pictures: a tiny model learns to look closer, and to tell what it sees there."""

import random
from statistics import fmean

from datasets import Dataset
from PIL import Image
from transformers import TrainerCallback

import tiny_vision
from a2tgpo_trl import A2TGPOTrainer

LOOK, RED, BLUE = "<crop>middle</crop>", "red.", "blue."
"""All that the model can write, a token each: a call, and two answers."""


class Scene:
    """From far all is grey; a crop has the colour."""

    def reset(self, answer, **row):
        self.color = answer.rstrip(".")

    def crop(self, part: str) -> Image.Image:
        """
        Look closer.

        Args:
            part: Where.
        """
        return Image.new("RGB", (16, 16), self.color)


def right(completions, answer, **kwargs):
    return [float(messages[-1]["content"] == word) for messages, word in zip(completions, answer, strict=True)]


def rows():
    rng = random.Random(0)
    answers = [answer for _ in range(100) for answer in rng.sample([RED, BLUE], 2)]
    prompt, grey = [{"role": "user", "content": "Look: <crop>"}], Image.new("RGB", (16, 16), "grey")
    return [{"prompt": prompt, "image": grey, "answer": answer} for answer in answers]


class Rewards(TrainerCallback):
    def __init__(self):
        self.means = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.means += [logs["reward"]] if "reward" in logs else []


def test_a_model_learns_to_look_and_to_see(config):
    processor = tiny_vision.processor("qwen2_5_vl")
    processor.tokenizer.add_tokens([LOOK, RED, BLUE])
    words = processor.tokenizer.convert_tokens_to_ids([LOOK, RED, BLUE])
    rewards = Rewards()
    options = config(
        advantage_estimator="grpo", tool_protocol="tags", max_turn_tokens=1, max_completion_length=64,
        num_generations=8, per_device_train_batch_size=32, steps_per_generation=1, max_steps=12, learning_rate=3e-3, lockstep=True,
        generation_kwargs={"suppress_tokens": sorted({*range(400)} - {*words})},
    )  # fmt: skip
    trainer = A2TGPOTrainer(
        tiny_vision.model("qwen2_5_vl"), right, options, Dataset.from_list(rows()), processing_class=processor,
        environment_factory=Scene, callbacks=[rewards],
    )  # fmt: skip
    trainer.train()
    assert fmean(rewards.means[:2]) < 0.65 and fmean(rewards.means[-4:]) > 0.9  # half of all guesses are right
    played = trainer.play(rows()[:8], greedy=True)
    assert [rollout.reward for rollout in played] == [1.0] * 8
    assert [turn.text for rollout in played for turn in rollout.turns[::2]] == [LOOK] * 8
