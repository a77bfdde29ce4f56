"""Weights become on two processes what they become on one, with DDP, FSDP2 and DeepSpeed."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

import tiny
import tiny_vision
from launching import launch

pytestmark = pytest.mark.processes
WORKER = Path(__file__).with_name("sharded_worker.py")
LIMIT = 480


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model whose larger matrices DeepSpeed does not keep whole on every process, as it does with small ones."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny.model(intermediate_size=4096).save_pretrained(folder / "model")
    tiny_vision.model("qwen2_5_vl", intermediate_size=4096).save_pretrained(folder / "vision")
    return folder


def run(processes: int, folder: Path, *ways: str, **options) -> list[dict]:
    """What each process found out about some ways of training, or about all."""
    launch(processes, str(WORKER), str(folder), *ways, seconds=LIMIT, **options)
    return [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]


def check(alone: dict, pair: list[dict], folder: Path, held: float) -> None:
    """Rollouts, weights, what is resumed, what is saved, and how much of it a process keeps."""
    for name in pair[0].keys() - {"refusal"}:
        expected, first, second = (part[name] for part in (alone, *pair))
        if held < 1:  # generation is collective
            assert first["generations"] == second["generations"]
        assert first["gains"] == second["gains"] == pytest.approx(expected["gains"], abs=1e-4, nan_ok=True)
        assert first["played"] == second["played"]
        assert first["played"][::2] == first["played"][1::2] == expected["played"]
        assert expected["played"][0] != expected["played"][1]  # it has learned
        assert first["held"] <= held and expected["held"] == 1
        close(first["weights"], expected["weights"], 1e-5)
        close(first["resumed"], first["weights"], 0)
        trained = {key: weight for key, weight in first["weights"].items() if "lora" in key or "lora" not in name}
        close(saved(folder / f"{name}-2-model"), trained, 0)


def saved(folder: Path) -> dict:
    """What was saved of a model, or of its adapter, by the names of the weights in training."""
    if (folder / "config.json").exists():
        (kind,) = AutoConfig.from_pretrained(folder).architectures
        return dict(getattr(transformers, kind).from_pretrained(folder).state_dict())
    weights = load_file(folder / "adapter_model.safetensors")
    return {re.sub(r"(lora_.)\.weight", r"\1.default.weight", key): weight for key, weight in weights.items()}


def close(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, atol=tolerance, rtol=0)


def refused(pair: list[dict]) -> bool:
    """Whether a critic was."""
    return all("launch without" in part["refusal"] for part in pair)


@pytest.fixture(scope="module")
def alone(folder):
    return run(1, folder)[0]


def test_ddp(folder, alone):
    check(alone, run(2, folder, "lora", "chat", "pictures"), folder, held=1.0)


def test_fsdp2(folder, alone):
    pair = run(2, folder, file="fsdp2")
    assert refused(pair) and alone.keys() == pair[0].keys() - {"refusal"}
    check(alone, pair, folder, held=0.5)
    for name, expected in alone.items():
        assert [part[name]["empty"] for part in pair] == [expected["empty"]] * 2
    assert alone["shared"]["empty"] == 2 and alone["lora_apart"]["empty"] == 1


@pytest.fixture(scope="module")
def without_skips(folder):
    return run(1, folder, SKIP_EMPTY_UPDATES="false")[0]


@pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: `make test-distributed` runs this"
)
@pytest.mark.parametrize(("stage", "held"), [(3, 0.5), (2, 1.0)])
def test_deepspeed(folder, without_skips, stage, held):
    """It keeps gradients to itself, so that no update is left out."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where ninja is, which builds what DeepSpeed runs on a CPU
    on_the_cpu = dict(ACCELERATE_USE_CPU="false", DS_ACCELERATOR="cpu", PATH=path)
    pair = run(2, folder, file="zero3", overrides=("--zero_stage", str(stage)), **on_the_cpu)
    assert refused(pair) and without_skips.keys() == pair[0].keys() - {"refusal"}
    check(without_skips, pair, folder, held)
