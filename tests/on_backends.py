"""Trainers on each backend; vLLM is the real engine on the CPU, in float32 and without compiling."""

import copy
import gc
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GenerationConfig

import chance
import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from chain import PROMPTS, chain

CHAIN_ROWS = [{"prompt": prompt, "answer": "Paris"} for prompt in PROMPTS]

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm` runs this")
OTHERS = ["continuous batching", pytest.param("vllm", marks=needs_vllm)]

BACKENDS = {
    "transformers": {},
    "continuous batching": {
        "use_transformers_continuous_batching": True,
        # The default takes half of the machine's memory at each generation
        "transformers_continuous_batching_config": {"num_blocks": 256, "page_size": 32, "max_batch_tokens": 512},
    },
    "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 1024},
}


def search(query: str) -> str:
    """
    Look something up.

    Args:
        query: What to look for.
    """
    return "Lyon is in France." if query == "Lyon" else "Nothing."


def keep_weights(layer, remove_weight: bool) -> None:
    """Multiply by the layer's own weight; vLLM's CPU build would pack a copy and throw the original away."""
    layer.cpu_linear = torch.nn.functional.linear


@pytest.fixture
def engine(monkeypatch):
    """vLLM's engine takes new weights again and again, in float32."""
    import trl.generation.vllm_generation as generation
    import vllm.model_executor.layers.utils as layers

    monkeypatch.setattr(layers, "dispatch_cpu_unquantized_gemm", keep_weights)
    # 16,384 tokens of cache: the default takes a gigabyte, which an engine that is let go of may keep
    options = {"dtype": "float32", "enforce_eager": True, "num_gpu_blocks_override": 128}
    monkeypatch.setattr(generation, "LLM", partial(generation.LLM, **options))
    yield
    gc.collect()


@pytest.fixture
def small():
    """`small(**config)`: a tiny model of a shape that vLLM has a CPU kernel for."""
    return partial(tiny.model, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)


@pytest.fixture
def save(tmp_path_factory):
    """`save(model, tokenizer)`: the folder that TRL and vLLM load them from."""

    def to_folder(model, tokenizer, eos: int | list[int] = 2) -> Path:
        folder = tmp_path_factory.mktemp("model")
        model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return to_folder


@pytest.fixture
def trainer_on(config, request):
    """`trainer_on(backend, folder, dataset, **options)`: a trainer of the model in a folder."""

    def make(backend, folder, dataset, reward=None, peft_config=None, tools=None, environments=None, **options):
        if backend == "vllm":
            request.getfixturevalue("engine")
        defaults = {"advantage_estimator": "grpo", "max_completion_length": 160, "per_device_eval_batch_size": 12}
        return A2TGPOTrainer(
            model=str(folder),
            reward_funcs=reward or (lambda completions, **kwargs: [0.0] * len(completions)),
            args=config(A2TGPOConfig, **{**BACKENDS[backend], **defaults, **options}),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(folder),
            tools=tools,
            peft_config=peft_config,
            environment_factory=environments,
        )

    return make


def played(trainer, rows, keep: list | None = None):
    """Prompt ids, completion ids, tool masks and messages of greedy rollouts; `keep` gets what `play` returns."""
    outputs, generate = [], trainer._generate

    def keep_output(prompts):
        outputs.append(generate(prompts))
        return copy.deepcopy(outputs[-1])

    trainer._generate = keep_output
    rollouts = trainer.play(rows, greedy=True)
    del trainer._generate
    if keep is not None:
        keep.extend(rollouts)
    (output,) = outputs
    return output[:4]


@pytest.fixture
def by_chance(small, save, trainer_on, monkeypatch):
    """`by_chance(backend, **options)`: a trainer of a random model that calls tools by chance, chat protocol."""
    chance.install_parser(monkeypatch)

    def make(backend, tools=(chance.look,), model=None, **options):
        folder = save(model or small(), tiny.chat_tokenizer(), eos=chance.ENDS)
        options = {"max_tool_calling_iterations": 4, "num_generations": 2, **options}
        return trainer_on(backend, folder, chance.dataset(), tools=list(tools) or None, **options)

    return make


@pytest.fixture
def by_chain(save, trainer_on):
    """`by_chain(backend, paths, …)`: a trainer of a chain, tags protocol."""

    def make(backend, tokenizer=None, model=None, tools=None, **options):
        tokenizer = tokenizer or tiny.tokenizer()
        folder = save(model or chain(tokenizer), tokenizer)
        return trainer_on(backend, folder, Dataset.from_list(CHAIN_ROWS), tools=tools or [search], **options)

    return make
