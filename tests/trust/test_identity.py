"""`advantage_estimator="grpo"` is TRL's `GRPOTrainer` over five optimizer steps: weights, losses, gradients, metrics, bit for bit."""

import asyncio
import itertools

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

import tiny
from conftest import chat_correct, chat_rollouts, same, search, weights

STEPS = 5
LOSSES = {
    "grpo": {}, "dr_grpo": {}, "dapo": {}, "bnpo": {}, "cispo": dict(epsilon_high=5.0), "sapo": {},
    "luspo": dict(importance_sampling_level="sequence"), "vespo": {},
}  # fmt: skip
QUESTIONS = [
    "What is the capital of the country where Lyon is?",
    "Where is Lyon?",
    "Which currency has Japan?",
    "What is the capital of France?",
]
ROWS = [{"prompt": [{"role": "user", "content": QUESTIONS[i % 4]}], "answer": ["Paris"], "row": i} for i in range(16)]


def length(completions, **_):
    """Sampled text is noise: its length is a reward that differs within groups."""
    return [len(messages[-1]["content"] or "") / 10 for messages in completions]


def vowels(completions, **_):
    return [float(sum(map((messages[-1]["content"] or "").count, "aeiou"))) for messages in completions]


async def later(completions, **_):
    await asyncio.sleep(0.001)
    return vowels(completions)


def sometimes(completions, **_):
    """No reward for completions of an odd length."""
    return [value if value % 0.2 < 0.05 else None for value in length(completions)]


class Counter:
    """An environment whose one tool counts."""

    def reset(self, **_) -> str | None:
        self.calls = 0
        return None

    def search(self, query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.

        Returns:
            A passage with a number.
        """
        self.calls += 1
        return f"{query}: passage {self.calls}."


def rewarded_by_environment(completions, environments=None, **_):
    return [environment.calls + value for environment, value in zip(environments, length(completions), strict=True)]


def fixed_rollouts(prompts, trainer):
    """Completions that depend on the prompt and on its place alone."""
    tokenizer = trainer.processing_class
    prompt_ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    places = [sum(map(len, str(prompt))) + place for place, prompt in enumerate(prompts)]
    texts = [" ".join(map(str, range(10, 12 + place % 5))) + "<|im_end|>" for place in places]
    completions = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    logprobs = [[-1.0] * len(ids) for ids in completions]
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": logprobs}


def streamed():
    return IterableDataset.from_generator(lambda: itertools.chain.from_iterable([ROWS] * 4))


SCRIPTED = dict(
    rollouts=chat_rollouts, tools=[search], reward=chat_correct, dataset=lambda: Dataset.from_list(ROWS[:1] * 8)
)
CASES = {
    "plain": {},
    "tools": SCRIPTED,
    "tools, twice each batch, kept apart by accumulation": SCRIPTED | dict(num_iterations=2, gradient_accumulation_steps=2),
    "lora": dict(peft_config=lambda: LoraConfig(r=4, init_lora_weights="gaussian", target_modules="all-linear")),
    "lora, beta": dict(beta=0.1, peft_config=lambda: LoraConfig(r=4, target_modules="all-linear")),
    "num_iterations": dict(num_iterations=2),
    "accumulation": dict(gradient_accumulation_steps=2, steps_per_generation=4),
    "beta": dict(beta=0.1),
    "reference that moves": dict(beta=0.1, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.5),
    "masked truncation": dict(mask_truncated_completions=True, max_completion_length=10),
    "async reward": dict(reward=[later, length]),
    "weighted rewards, some None": dict(reward=[sometimes, vowels], reward_weights=[0.3, 2.0]),
    "normalised after the sum": dict(reward=[length, vowels], multi_objective_aggregation="normalize_then_sum"),
    "scaled by the batch": dict(scale_rewards="batch"),
    "not scaled": dict(scale_rewards="none"),
    "environments": dict(
        rollouts=chat_rollouts, environment_factory=Counter, reward=rewarded_by_environment,
        dataset=lambda: Dataset.from_list(ROWS[:1] * 8),
    ),
    "rollout_func": dict(rollout_func=fixed_rollouts, reward=length),
    "streamed": dict(dataset=streamed),
    "evaluation between steps": dict(
        eval_strategy="steps", eval_steps=2, eval_dataset=lambda: Dataset.from_list(ROWS[:4]), per_device_eval_batch_size=4
    ),
    "sequence ratio": dict(importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    "two-sided clipping": dict(delta=1.5, epsilon=0.01),
    "top entropy": dict(top_entropy_quantile=0.5),
    "off-policy mask": dict(off_policy_mask_threshold=0.01, num_iterations=2),
    "gradient checkpointing": dict(gradient_checkpointing=True),
    "dropout": dict(dropout=0.1),
} | {f"loss_type {name}": dict(loss_type=name, num_iterations=2, **options) for name, options in LOSSES.items()}  # fmt: skip


MADE = ("rollouts", "peft_config", "dataset", "eval_dataset")
"""Options that a case makes anew for each trainer."""
TIMED = ("runtime", "per_second", "step_time", "profiling")
"""Parts of the names of metrics that measure time."""


def saved(folder, **config) -> str:
    """A model on the disk, from where a reference is loaded once more."""
    tiny.model(**config).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture
def run(build, tmp_path):
    """`run(case, **classes)`: a trainer after five optimizer steps, and the weights before them."""

    def train(case, **classes):
        options = {name: value() if name in MADE else value for name, value in CASES[case].items()}
        defaults = dict(
            rollouts=None, reward=length, dataset=Dataset.from_list(ROWS), max_steps=STEPS, temperature=1.1,
            num_iterations=1, max_completion_length=400 if "rollouts" in options else 24, shuffle_dataset=True, tools=[],
            model=saved(tmp_path, attention_dropout=options.pop("dropout", 0.0)), processing_class=tiny.chat_tokenizer(),
            loss_type="dapo", importance_sampling_level="token", epsilon=0.2,
        )  # fmt: skip
        trainer = build(**(defaults | options), **classes)
        before = weights(trainer)
        torch.manual_seed(0)
        trainer.train()
        return trainer, before

    return train


@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_trls(run, case):
    ours, before = run(case, advantage_estimator="grpo")
    theirs, _ = run(case, trainer=GRPOTrainer, cls=GRPOConfig)
    assert theirs.state.global_step == STEPS
    assert weights(ours).keys() == weights(theirs).keys()
    assert same(weights(ours), weights(theirs))
    assert not same(weights(ours), before)
    for mine, trls in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        compared = {name: value for name, value in trls.items() if not any(word in name for word in TIMED)}
        assert {name: repr(mine.get(name)) for name in compared} == {name: repr(compared[name]) for name in compared}
