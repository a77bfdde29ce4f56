"""The functional layer stands alone, and its examples run."""

import doctest
import importlib
import subprocess
import sys

import pytest

import a2tgpo_trl.functional

MODULES = ["credit", "ratio", "turns"]


def test_nothing_but_torch_is_imported():
    code = """
import sys
import a2tgpo_trl.functional
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"trl", "transformers", "datasets", "accelerate", "peft"}


def test_public_names():
    assert set(a2tgpo_trl.functional.__all__) == {
        "turn_ids",
        "observation_ends",
        "spread_turns",
        "information_gain",
        "normalize_turn_groups",
        "normalize_groups",
        "accumulate",
        "discounted_outcome",
        "turn_advantages",
        "adaptive_clip_scale",
        "turn_log_ratio",
        "turn_level_old_logps",
    }
    assert all(callable(getattr(a2tgpo_trl.functional, name)) for name in a2tgpo_trl.functional.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"a2tgpo_trl.functional.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
