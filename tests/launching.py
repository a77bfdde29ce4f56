"""`accelerate launch` on the CPU."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

FILES = resources.files("a2tgpo_trl") / "recipes" / "launch"


def launch(processes: int, *command: str, folder: Path | None = None, file: str = "ddp", **variables: str) -> str:
    """What a script (or `-m` module) printed, on so many processes."""
    # `--cpu` alone would start one process, or need MPI: this is torchrun, on the CPU because the environment says so
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    launcher += ["--config_file", str(FILES / f"{file}.yaml")] if processes > 1 else ["--cpu", "--num_machines", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CI": "1", **variables}
    done = subprocess.run(
        [*launcher, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
