"""The demo's model on vLLM: the rollouts and gains of the transformers backend, and a step of training."""

import random

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen2_5_chat_template

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.demo.model import prepare_model
from a2tgpo_trl.search import BM25Search
from on_backends import needs_vllm, played

pytestmark = needs_vllm

ATLAS = load_atlas()
search = BM25Search(ATLAS.passages, top_k=1, show_titles=False).search
SHOWN = [
    ("What is the capital of the country where the city of Osaka is located?", ["Osaka", "capital of Japan"], "Tokyo"),
    ("What is the currency of the country whose capital is Lima?", ["Lima", "currency of Peru"], "Peruvian sol"),
]
QUESTIONS = [question["question"] for question in random.Random(0).sample(ATLAS.questions, 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepare_model(tmp_path_factory.mktemp("demo") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = qwen2_5_chat_template
    tokenizer.save_pretrained(folder)
    return folder


def text_prompt(question: str) -> str:
    shown = [
        f"Question: {asked}\n"
        + "".join(f"<search>{query}</search>\n<result>{search(query)}</result>\n" for query in queries)
        + f"<answer>{answer}</answer>\n"
        for asked, queries, answer in SHOWN
    ]
    return "\n".join([*shown, f"Question: {question}\n"])


def conversation(question: str) -> list[dict]:
    messages = [{"role": "system", "content": "Search, then answer."}]
    for asked, queries, answer in SHOWN:
        messages.append({"role": "user", "content": asked})
        for query in queries:
            call = {"type": "function", "function": {"name": "search", "arguments": {"query": query}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "name": "search", "content": search(query)})
        messages.append({"role": "assistant", "content": f"<answer>{answer}</answer>"})
    return [*messages, {"role": "user", "content": question}]


@pytest.fixture
def shown(trainer_on, folder):
    """`shown(backend, write, advantage_estimator="a2tgpo")`: a trainer in float32, and rows whose prompts show how to search."""

    def make(backend, write, **options):
        rows = [{"prompt": write(question), "answer": "Paris"} for question in QUESTIONS]
        options = {
            "model_init_kwargs": {"dtype": "float32"},
            "max_completion_length": 120,
            "max_tool_calling_iterations": 3,
            **({"vllm_max_model_length": 2048} if backend == "vllm" else {}),
            **options,
        }
        return trainer_on(backend, folder, Dataset.from_list(rows), tools=[search], **options), rows

    return make


@pytest.mark.parametrize("write", [text_prompt, conversation], ids=["tags", "chat"])
def test_rollouts_and_gains_are_those_of_the_transformers_backend(shown, write):
    tokens, rollouts = {}, {}
    for backend in ("transformers", "vllm"):
        trainer, rows = shown(backend, write, advantage_estimator="a2tgpo")
        tokens[backend] = played(trainer, rows, keep=rollouts.setdefault(backend, []))
    assert tokens["vllm"] == tokens["transformers"]
    assert sum(0 in mask for mask in tokens["vllm"][2]) > len(QUESTIONS) // 2  # most of them searched
    for ours, theirs in zip(rollouts["vllm"], rollouts["transformers"], strict=True):
        gains = [[turn.credit["information_gain"] for turn in rollout.turns] for rollout in (ours, theirs)]
        assert gains[0] == pytest.approx(gains[1], abs=1e-3)


def test_a_batch_of_training_with_an_adapter(shown):
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    trainer, _ = shown(
        "vllm",
        text_prompt,
        peft_config=adapter,
        reward=lambda completions, **kwargs: [float(len(text) % 7) for text in completions],
        advantage_estimator="a2tgpo",
        learning_rate=1e-4,
        max_steps=2,
    )
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["tools/call_frequency"] > 0
    assert first["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.05)
    assert first["grad_norm"] > 0 and second["grad_norm"] > 0
    assert all(value == value for value in first.values() if isinstance(value, float))
