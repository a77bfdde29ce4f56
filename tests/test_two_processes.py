"""A group that spans processes gets the credit it gets on one."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from a2tgpo_trl.cli.main import main
from a2tgpo_trl.credit import ESTIMATORS
from launching import launch

pytestmark = pytest.mark.processes
WORKER = Path(__file__).with_name("two_processes_worker.py")


def run(processes: int, folder: Path) -> list[dict]:
    launch(processes, str(WORKER), str(folder))
    return [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]


def test_two_processes_against_one(tmp_path):
    (alone,), pair = run(1, tmp_path), run(2, tmp_path)
    assert [part["local_turns"] for part in pair] == [2, 4]  # K differs between processes before they agree on it
    assert alone["generations"] == [4, 3, 2, 1]
    assert [part["generations"] for part in pair] == [
        [2, 1, 1, 1],
        [2, 2, 2, 1],
    ]  # the first one joins with a row of its own
    # Trees: one for each rollout. Prefixes: of the prompt and 1 observation on one process, of the prompt and 5 on the other,
    # which make the same number of forwards
    assert alone["forwards"] == [4, 6] and [part["forwards"] for part in pair] == [[2, 6], [2, 6]]
    ways = ("", "_by_trees", "_by_prefixes", "_otherwise")
    gains = [f"information_gain{way}" for way in ways]
    assert not torch.equal(alone["information_gain"][1], alone["information_gain_otherwise"][1])
    methods = [key for key in alone if key.startswith("advantages of ")]
    assert len(methods) >= len(ESTIMATORS) - 1  # trees do not span processes
    for key in ("advantages", *methods, *gains, "clip_scale"):
        together = [row for part in pair for row in part[key]]
        for left, right in zip(alone[key], together, strict=True):
            width = min(len(left), len(right))
            torch.testing.assert_close(left[:width], right[:width], atol=1e-5, rtol=1e-5, equal_nan=True)
    for layers, (critic, policy, losses) in alone["critics"].items():
        assert (critic["head.weight"] != 0).any() and len(losses) == 3
        for part in pair:
            torch.testing.assert_close(part["critics"][layers][0], critic, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(part["critics"][layers][1], policy, atol=1e-5, rtol=1e-4)
            assert part["critics"][layers][2] == pytest.approx(losses, rel=1e-4)
        for name, weight in pair[0]["critics"][layers][0].items():
            assert torch.equal(weight, pair[1]["critics"][layers][0][name])
    torch.testing.assert_close(torch.cat([part["outcome"] for part in pair]), alone["outcome"])
    assert alone["outcome"].unique().numel() > 1
    for name, value in alone["metrics"].items():
        for part in pair:
            assert part["metrics"][name] == pytest.approx(value, abs=1e-4, nan_ok=True), name
    assert pair[0]["empty"] == pair[1]["empty"] == alone["empty"]
    assert [part["saved"] for part in pair] == [True, False] and alone["saved"]
    assert pair[0]["skipped"] == pair[1]["skipped"] == [True, False, True, True, False]
    for name, value in pair[0]["weights"].items():
        assert torch.equal(value, pair[1]["weights"][name])


def test_the_command_on_two_processes(tmp_path, monkeypatch):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    command = ["-m", "a2tgpo_trl.cli"]
    shared = "--use_cpu --bf16 false --report_to none --max_completion_length 40 --tools search --search_index atlas"
    training = "--dataset atlas --num_generations 4 --per_device_train_batch_size 2 --max_steps 2 --output_dir run"
    options = [*shared.split(), "--model_name_or_path", "model"]
    printed = launch(2, *command, "train", *training.split(), *options, folder=tmp_path)
    assert printed.count("Trained 2 steps; the model is in run.") == 1
    assert (tmp_path / "run" / "model.safetensors").exists()

    evaluation = ["eval", "--datasets", "atlas", "--limit", "5", "--per_device_eval_batch_size", "2", *options]
    # Batches of 4 and then of 1, which both processes get
    printed = launch(2, *command, *evaluation, "--output", "2.jsonl", folder=tmp_path)
    assert printed.count("exact match") == 1
    monkeypatch.chdir(tmp_path)
    assert main([*evaluation, "--output", "1.jsonl"]) == 0
    alone, together = ((tmp_path / f"{processes}.jsonl").read_text() for processes in (1, 2))
    assert together == alone
    assert [json.loads(line)["index"] for line in alone.splitlines()[1:]] == [0, 1, 2, 3, 4]


def test_trees_on_two_processes(tmp_path):
    """A tree each, in as many collective generations, and the credit of both on each."""
    launch(2, str(WORKER.with_name("trees_worker.py")), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["generations"] == second["generations"]
    assert first["paths"] != second["paths"]
    assert all(len(set(map(tuple, part["paths"]))) == 4 for part in (first, second))
    nodes = first["nodes"]
    assert [[node for node in row if node >= 0] for row in nodes.tolist()] == first["paths"] + second["paths"]
    assert torch.equal(nodes, second["nodes"])
    torch.testing.assert_close(first["values"], second["values"], rtol=0, atol=0, equal_nan=True)
    chains = sum(len({path[0] for path in part["paths"]}) for part in (first, second))
    assert first["metrics"] == second["metrics"] and first["metrics"]["tree/leaves_per_chain"] == 8 / chains
