"""`benchmarks/method_cost.py` at toy size."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

for needed in ("peft", "bm25s"):
    pytest.importorskip(needed)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

method_cost = import_module("method_cost")


def test_a_method_is_paired_with_grpo():
    options = method_cost.parse(["--toy", "--random", "--rounds", "1", "--methods", "gigpo"])
    figures = method_cost.measure(options)
    (found,) = figures.values()
    assert list(figures) == ["gigpo"] and list(found["seconds"]) == list(found["megabytes"]) == ["grpo", "gigpo"]
    assert 0 < found["over_grpo"]["min"] <= found["over_grpo"]["median"] <= found["over_grpo"]["max"]


def test_all_methods_but_the_baseline_are_paired():
    of_trees = {name for name, cls in method_cost.ESTIMATORS.items() if "tree" in cls.signals}
    assert {*method_cost.parse([]).methods, "grpo"} == set(method_cost.ESTIMATORS) - of_trees
