"""A group that spans processes gets the credit it gets on one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

WORKER = Path(__file__).with_name("two_processes_worker.py")


def run(processes: int, folder: Path) -> list[dict]:
    # `--cpu` alone would start one process, or need MPI: this is torchrun, on the CPU because the environment says so
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--num_processes", str(processes), "--main_process_port", "0"]
    launcher += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [*launcher, str(WORKER), str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
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
    gains = ("information_gain", "information_gain_by_trees", "information_gain_by_prefixes")
    for key in ("advantages", *gains, "clip_scale"):
        together = [row for part in pair for row in part[key]]
        for left, right in zip(alone[key], together, strict=True):
            width = min(len(left), len(right))
            torch.testing.assert_close(left[:width], right[:width], atol=1e-5, rtol=1e-5, equal_nan=True)
    for name, value in alone["metrics"].items():
        for part in pair:
            assert abs(part["metrics"][name] - value) < 1e-4, name
    assert pair[0]["empty"] == pair[1]["empty"] == alone["empty"]
    for name, value in pair[0]["weights"].items():
        assert torch.equal(value, pair[1]["weights"][name])
