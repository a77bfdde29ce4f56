"""`benchmarks/first_hour.py`: what it runs is there to be run, without running it."""

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from trl import ModelConfig

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli.parser import parse
from a2tgpo_trl.cli.train import TrainArguments

pytest.importorskip("peft")  # `measuring` tells its version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

first_hour = import_module("first_hour")


def test_its_commands_are_targets_and_options():
    git, install, demo, own = (
        shlex.split(line.format(root=ROOT, folder="clone")) for line in first_hour.COMMANDS.values()
    )
    assert git[:2] == ["git", "clone"]
    for make, target in (install, demo):
        subprocess.run([make, "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
    program, command, *options = own
    assert (Path(program).name, command) == ("a2tgpo", "train")
    arguments, config, _ = parse("train", "", (TrainArguments, A2TGPOConfig, ModelConfig), options)
    assert arguments.prompt_template == "Question: {question}\n"
    assert first_hour.LEAVES["own JSONL"] == f"{config.output_dir}/adapter_model.safetensors"
