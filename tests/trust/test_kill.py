"""A run that is killed at any moment goes on from its last whole checkpoint, and ends as if it had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_sixty_kills(tmp_path):
    """A third of them while a checkpoint is written; each run that comes to its end is compared with one that nobody killed."""
    worker = str(Path(__file__).with_name("kill_worker.py"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, worker, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads((tmp_path / "told.json").read_text())
    print(told)
    assert told["kills"] == 60
    assert told["torn"] >= 3  # checkpoints that were being written
    assert set(told["finished"]) == {"a2tgpo", "turn_ppo"}
