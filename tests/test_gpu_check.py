"""`benchmarks/gpu/check.sh` on the CPU at toy size: every part, what is kept, and what becomes of a part that fails."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

for needed in ("peft", "matplotlib", "rich", "bm25s"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]

check, parts = import_module("check"), import_module("parts")

FIGURES = {
    "suite": ["tests", "seconds"],
    "beliefs": ["toy"],
    "training": ["shared", "step"],
    "demo": ["held_out_before", "held_out", "seconds_of_training_until_0.8"],
    "memory": ["estimated_megabytes", "seconds_of_training"],
    "history": ["random weights"],
}


@pytest.fixture
def alone():
    """As in a process of its own: what mixes precisions elsewhere is forgotten before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def options(folder, *arguments):
    return check.parse(["--device", "cpu", "--toy", "--output-dir", str(folder), *arguments])


def command(folder, *arguments):
    line = ["bash", "benchmarks/gpu/check.sh", "--device", "cpu", "--toy", "--output-dir", str(folder), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "WHEELS": str(folder)}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.processes
def test_the_command_writes_a_part_once(tmp_path):
    done = command(tmp_path, "scaling")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert {"trl", "transformers", "torch"} <= written["versions"].keys() and written["machine"]["device"]
    assert written["1 rows of 300 tokens"]["ours_over_trl"]["median"] > 0 and "error" not in written
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.json"]
    again = command(tmp_path, "scaling")
    assert again.returncode == 0 and "===" not in again.stdout and again.stdout.startswith("scaling   done in ")


@pytest.mark.processes
@pytest.mark.parametrize("part", FIGURES)
def test_every_part_has_its_figures(part, tmp_path, alone, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a part may go elsewhere
    check.run_here(part, options(tmp_path))
    written = json.loads((tmp_path / f"{part}.partial").read_text())
    assert "error" not in written and set(FIGURES[part]) <= written.keys()
    if part == "suite":
        assert "passed" in written["tests"].values() and "failed" not in written["tests"].values()


def test_the_parts_are_all_tried():
    assert {*FIGURES, "scaling"} == check.LIMITS.keys()


def test_a_part_that_fails_keeps_what_it_had(tmp_path, monkeypatch):
    def broken(options):
        yield "first", 1
        raise ArithmeticError("no second")

    monkeypatch.setattr(parts, "history", broken)
    check.run_here("history", options(tmp_path))
    written = json.loads((tmp_path / "history.partial").read_text())
    assert written["first"] == 1 and written["error"][-1] == "ArithmeticError: no second"


def test_a_part_is_ended_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c", "import time; time.sleep(60)"])
    check.run("memory", options(tmp_path), limit=0.2)
    assert json.loads((tmp_path / "memory.json").read_text())["error"] == ["ended after 0 seconds"]


STUCK = f"""
import sys, time, types
sys.path[:0] = [{str(ROOT / "benchmarks" / "gpu")!r}]
import check

def stuck(options):
    yield "first", 1
    time.sleep(60)

sys.modules["parts"], check.described = types.SimpleNamespace(history=stuck), lambda options: {{}}
check.BEFORE_THE_END = 4
check.main()
"""


def test_a_part_that_is_stuck_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c", STUCK, "--device", "cpu", "--output-dir", str(tmp_path)])
    check.run("history", options(tmp_path), limit=6)
    written = json.loads((tmp_path / "history.json").read_text())
    assert written["first"] == 1 and written["error"][-1] == "ended after 6 seconds"
    assert "in stuck" in written["error"][0] and not any(str(ROOT) in line for line in written["error"])
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_what_is_not_started_says_why(tmp_path):
    real = check.parse(["--device", "cpu", "--output-dir", str(tmp_path), "--model", str(tmp_path)])
    assert check.outcome("demo", real, deadline=float("inf")).startswith(f"skipped: {tmp_path} holds neither SmolLM2")
    assert check.outcome("memory", real, deadline=0).startswith("not started: ")


def test_the_model_is_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "GGUF_SHA256", check.hashlib.sha256(b"whole").hexdigest())
    for folder, pieces in {"half": [b"who"], "all": [b"who", b"le"]}.items():
        (tmp_path / folder).mkdir()
        for i, piece in enumerate(pieces):
            (tmp_path / folder / f"{check.GGUF}.0{i}").write_bytes(piece)
    assert check.find_gguf(tmp_path / "half") is None
    assert check.find_gguf(tmp_path / "all") == tmp_path / "all"
    assert (tmp_path / "all" / check.GGUF).read_bytes() == b"whole"
