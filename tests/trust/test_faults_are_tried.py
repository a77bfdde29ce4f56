"""scripts/mutate.py on faults of which the outcome is known, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTICED = """
[[fault]]
name = "the sign"
file = "functional/credit.py"
old = "outcome.unsqueeze(1) + coef * accumulated"
new = "outcome.unsqueeze(1) - coef * accumulated"
tests = ["tests/functional/test_examples.py"]
"""
SURVIVES = """
[[fault]]
name = "a word"
file = "functional/credit.py"
old = "Weight α of the accumulated gains."
new = "Weight α of accumulated gains."
tests = ["tests/functional/test_examples.py"]
"""
BREAKS = """
[[fault]]
name = "no module"
file = "functional/credit.py"
old = "import torch\\n"
new = "import torch_\\n"
tests = ["tests/functional/test_examples.py"]
"""
GONE = """
[[fault]]
name = "gone"
file = "functional/credit.py"
old = "this stands nowhere"
new = ""
tests = ["tests/functional/test_examples.py"]
"""


@pytest.mark.parametrize(
    ("faults", "status", "said"),
    [
        (NOTICED, 0, "1 of 1 faults noticed, 0 survived"),
        (NOTICED + SURVIVES, 1, "survived: functional/credit.py: a word"),
        (NOTICED + BREAKS, 2, "1 could not be tried"),
        (NOTICED + GONE, 2, "gone: its old text stands 0 times in functional/credit.py, expected once"),
    ],
    ids=["noticed", "survives", "breaks", "gone"],
)
def test_outcomes(tmp_path, faults, status, said):
    (tmp_path / "faults.toml").write_text(faults)
    source = ROOT / "src/a2tgpo_trl/functional/credit.py"
    before = source.read_bytes()
    command = [sys.executable, "scripts/mutate.py", "--faults", str(tmp_path / "faults.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said in done.stdout + done.stderr and done.returncode == status
    assert source.read_bytes() == before
