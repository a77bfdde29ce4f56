"""One process with four micro-batches, two with two each, four with one each: the same update."""

import os
import sys
from pathlib import Path

import pytest
import torch

from launching import launch

WORKER = Path(__file__).with_name("split_worker.py")
OF_MICRO_BATCHES = ("clip_ratio/", "entropy", "vespo/")
"""Metrics that TRL takes the mean of in each micro-batch, over its tokens, and then over micro-batches of any length."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By number of processes, what each of them saw."""
    folder = tmp_path_factory.mktemp("split")
    for processes in (1, 2, 4):
        launch(processes, str(WORKER), str(folder), seconds=500, PYTHONPATH=os.pathsep.join(sys.path))
    return {n: [torch.load(folder / f"{n}-{rank}.pt") for rank in range(n)] for n in (1, 2, 4)}


def largest_difference(some: list[dict], others: list[dict]) -> float:
    return max(
        (one[name] - other[name]).abs().max().item() for one, other in zip(some, others, strict=True) for name in one
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients(runs, processes):
    (alone,), together = runs[1], runs[processes]
    assert len(alone) >= 10
    for case, run in alone.items():
        largest = [max(g.abs().max().item() for g in step.values()) for step in run["gradients"]]
        assert min(largest) > 1e-4, case
        bound = 1e-6 * max(1, 2 * max(largest))  # of numbers above 1, as those of "luspo", float32 has fewer digits
        for part in together:
            difference = largest_difference(run["gradients"], part[case]["gradients"])
            # "bnpo" divides by the tokens of a micro-batch on its process, as TRL's does: docs/scaling.md says so
            assert (difference > 1e-3) if case == "a2tgpo, bnpo" else (difference < bound), (case, difference)
            assert largest_difference([part[case]["weights"]], [together[0][case]["weights"]]) == 0


@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_makes_the_same_collectives(runs, processes):
    """Of those that are called from Python, in the same order, a process without tool calls too."""
    first, *others = runs[processes]
    for case, run in first.items():
        assert {"all_gather_object", "all_gather_into_tensor"} & {*run["collectives"]} and len(
            run["collectives"]
        ) > 10, case
        assert all(other[case]["collectives"] == run["collectives"] for other in others), case


@pytest.mark.parametrize("processes", [2, 4])
def test_credit(runs, processes):
    """Gains, advantages and clip scales of every turn, of all processes."""
    (alone,), (first, *_) = runs[1], runs[processes]
    for case, run in alone.items():
        assert len(run["credit"]) > 12 and any(turn["advantage"] for turn in run["credit"]), case
        if case.startswith("a2tgpo"):
            assert any(turn["information_gain"] for turn in run["credit"])
            assert (len({turn["clip_scale"] for turn in run["credit"]}) > 2) is (
                "sapo" not in case and "vespo" not in case
            )
        for turn, other in zip(run["credit"], first[case]["credit"], strict=True):
            known = {name: value for name, value in turn.items() if value is not None}
            assert {name for name, value in other.items() if value is not None} == known.keys()
            assert {name: other[name] for name in known} == pytest.approx(known, rel=1e-5, abs=1e-6), case


@pytest.mark.parametrize("processes", [2, 4])
def test_metrics(runs, processes):
    (alone,), (first, *_) = runs[1], runs[processes]
    for case, run in alone.items():
        if case == "a2tgpo, bnpo":
            continue
        for log, other in zip(run["logs"], first[case]["logs"], strict=True):
            assert log.keys() == other.keys()
            names = [
                name
                for name in log
                if not any(word in name for word in ("time", "latency")) and not name.startswith(OF_MICRO_BATCHES)
            ]
            assert len(names) > 5
            values = {name: log[name] for name in names if log[name] is not None}
            assert {name: other[name] for name in values} == pytest.approx(values, rel=1e-4, abs=1e-5), case
            assert all(other[name] is None for name in names if name not in values), case
