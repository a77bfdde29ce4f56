import os
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import torch
from datasets import Dataset

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import ESTIMATORS

torch.set_num_threads(1)  # tiny models: a second thread costs more than it gives

pytest_plugins = ["on_backends"]


def pytest_addoption(parser):
    parser.addoption("--test-device", choices=("cpu", "cuda"), default="cuda", help="for test_cuda.py")


QUESTION = "Question: What is the capital of the country where Lyon is?"


def search(query: str) -> str:
    """
    Look something up.

    Args:
        query: What to look for.

    Returns:
        A passage.
    """
    return {"Lyon": "Lyon is in France.", "capital of France": "The capital of France is Paris."}.get(
        query, "Nothing."
    )


def correct(completions, answer, **kwargs):
    return [float(f"<answer>{aliases[0]}</answer>" in text) for text, aliases in zip(completions, answer, strict=True)]


# One group: 0, 1, 3 and 2 tool turns, three right answers and a wrong one
GROUP = [
    ["<answer>Rome</answer><|im_end|>"],
    ["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"],
    [
        "<search>Lyon</search>",
        "<search>capital of France</search>",
        "<search>more</search>",
        "<answer>Paris</answer><|im_end|>",
    ],
    ["<search>France</search>", "<search>capital of France</search>", "<answer>Paris</answer><|im_end|>"],
]


ANSWER_ONLY = [
    ["<answer>Paris</answer><|im_end|>"],
    ["<answer>Rome is it</answer><|im_end|>"],
    ["<answer>Paris</answer> and more text<|im_end|>"],
    ["<answer>no</answer><|im_end|>"],
]


def chat_rollouts():
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "%s"}}\n</tool_call><|im_end|>'
    return [
        ["<answer>Rome</answer><|im_end|>"],
        [call % "Lyon", "<answer>Paris</answer><|im_end|>"],
        [call % "Lyon", call % "capital of France", "<answer>Paris</answer><|im_end|>"],
        [call % "x", "<answer>no</answer><|im_end|>"],
    ]


def chat_correct(completions, **kwargs):
    return [float("Paris" in messages[-1]["content"]) for messages in completions]


CHAT_ROWS = [{"prompt": [{"role": "user", "content": QUESTION}], "answer": ["Paris"]}] * 8


def needed_by(estimator):
    """Options without which an estimator cannot work; groups have at least four rollouts, which are no tree yet."""
    return {"tree_chains": 4} if "tree" in ESTIMATORS[estimator].signals else {}


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def rows():
    return [{"prompt": QUESTION, "answer": ["Paris", "Lutetia"]}] * 8


@pytest.fixture
def config(tmp_path):
    """Two updates per generation batch of one group of four, so that the second one is off-policy."""

    def make(cls=A2TGPOConfig, **options):
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            num_generations=4,
            per_device_train_batch_size=2,
            steps_per_generation=2,
            gradient_accumulation_steps=1,
            max_completion_length=400,
            max_steps=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
        )
        return cls(**{**defaults, **options})

    return make


@pytest.fixture(autouse=True)
def tools_are_instant(request, monkeypatch):
    """Rollouts that call tools together go on together, whatever else the machine has to do: a test's script and draws go by it."""
    if request.module.__name__ != "test_loop":  # which asks who waits for whom
        monkeypatch.setattr("a2tgpo_trl.rollout.loop.INSTANT", 60.0)


OF_THE_TRAINER = (
    "peft_config", "eval_dataset", "callbacks", "tools", "rollout_func", "environment_factory", "turn_reward_funcs",
)  # fmt: skip


@pytest.fixture
def build(config, rows, monkeypatch):
    """`build(rollouts, **options)`: a trainer of a tiny model that plays the scripted rollouts, tags protocol."""

    def make(rollouts=GROUP, model=None, processing_class=None, reward=correct, dataset=None, trainer=None, **options):
        arguments = {key: options.pop(key) for key in OF_THE_TRAINER if key in options}
        if rollouts is not None:
            tiny.Script(rollouts).install(monkeypatch)
        return (trainer or A2TGPOTrainer)(
            model=model or tiny.model(),
            reward_funcs=reward,
            args=config(**options),
            train_dataset=Dataset.from_list(rows) if dataset is None else dataset,
            processing_class=processing_class or tiny.tokenizer(),
            **{"tools": [search], **arguments},
        )

    return make


@pytest.fixture
def score(build, rows):
    """`score(rollouts, **options)`: the scored batch of one group, in the order of the rollouts."""

    def scored_batch(rollouts=GROUP, **options):
        trainer = build(rollouts, **options)
        trainer.model.train()
        return trainer._generate_and_score_completions([dict(row) for row in rows[:4]]), trainer

    return scored_batch


@pytest.fixture
def pythons_handler():
    """Ctrl-C raises, though a job in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
