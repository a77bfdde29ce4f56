"""`accelerate launch` on the CPU."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

FILES = resources.files("a2tgpo_trl") / "recipes" / "launch"


def launch(
    processes: int,
    *command: str,
    folder: Path | None = None,
    file: str = "ddp",
    overrides: tuple[str, ...] = (),
    seconds: float = 240,
    **variables: str,
) -> str:
    """What a script (or `-m` module) printed, on so many processes, with a launch file and more of the launcher's options."""
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
    launcher += ["--num_processes", str(processes), "--main_process_port", "0", *overrides]
    launcher += ["--config_file", str(FILES / f"{file}.yaml")] if processes > 1 else ["--cpu", "--num_machines", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CI": "1", **variables}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*launcher, *command], cwd=folder, env=environment, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers then; killed, it would leave them waiting for each other
            printed, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]
    return printed
