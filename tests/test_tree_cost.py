"""`benchmarks/tree_cost.py` at toy size."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

for needed in ("peft", "bm25s"):
    pytest.importorskip(needed)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

tree_cost = import_module("tree_cost")


def test_trees_are_paired_with_chains():
    small = "--toy --random --rounds 1 --prompts 1 --tool-turns 2 --turn-tokens 4 --choice random"
    figures = tree_cost.measure(tree_cost.parse(small.split()))
    assert figures["chains"]["generated_tokens"] > 0
    assert figures["chains_over_trees"]["generated_tokens"]["median"] > 1
    assert figures["trees"]["tree/leaves_per_chain"] > 1
    assert figures["chains_over_trees"]["seconds"]["min"] > 0
