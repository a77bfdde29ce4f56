"""A sample of the fuzz that `benchmarks/tool_faults.py` does at length."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tool_faults import fuzz


@pytest.mark.parametrize("chat", [True, False])
def test_no_fault_ends_a_run_or_breaks_a_rollout(chat):
    report = fuzz(300, chat)
    assert report["faults"] >= 300
    assert report["crashes"] == report["lost_rollouts"] == report["inconsistent_batches"] == 0
    assert report["stop_reasons"]["answered"] > 0 and report["stop_reasons"]["tool_stop"] > 0
