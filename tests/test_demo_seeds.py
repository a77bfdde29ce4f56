"""`benchmarks/demo_seeds.py`: what it reads of a run, and which goals it says that one missed."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("peft")  # `measuring` tells its version

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

demo_seeds = import_module("demo_seeds")


def run(before=0.0, between=(0.9,), after=0.95, sampled=0.8):
    curve = [{"reward": 0.5}, *({"reward": 0.5, "held_out": {"exact_match": value}} for value in between)]
    return {
        "before": {"greedy": {"exact_match": before}, "sampled": {"exact_match": 0.2}},
        "after": {"greedy": {"exact_match": after}, "sampled": {"exact_match": sampled}},
        "curve": curve,
        "seconds_since_start": 300,
    }


def test_points_of_a_run():
    assert demo_seeds.points(run(0.025, (0.5, 0.975), 0.95)) == {
        "greedy": [0.025, 0.5, 0.975, 0.95],
        "sampled": [0.2, 0.8],
        "fall": pytest.approx(0.025),
        "fall_at_the_end": pytest.approx(0.025),
        "seconds": 300,
    }


@pytest.mark.parametrize(
    "values, missed",
    [
        ({}, []),
        ({"before": 0.05, "between": (0.95,), "after": 0.9}, []),
        ({"before": 0.075}, ["warm start"]),
        ({"after": 0.875, "between": (0.875,)}, ["greedy"]),
        ({"sampled": 0.79}, ["sampled"]),
        ({"between": (1.0,), "after": 0.925}, ["fall"]),
        ({"between": (1.0, 0.9), "after": 1.0}, ["fall"]),
        ({"between": (0.5, 0.45), "after": 1.0}, []),
    ],
)
def test_what_is_missed(values, missed):
    assert demo_seeds.missed_by(demo_seeds.points(run(**values))) == missed
