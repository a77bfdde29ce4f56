"""`benchmarks/agent_step.py` at toy size."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("peft")  # `measuring` tells its version

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

agent_step = import_module("agent_step")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent-step")
    return f"--toy --layers 2 --turns 2 --prompts 1 --threads 1 --warm-start-steps 140 --folder {folder}".split()


def test_each_side_makes_its_calls_and_ours_make_them_at_once(arguments):
    agent_step.warm_start(agent_step.parse(arguments))
    found = {
        side: agent_step.measure_side(agent_step.parse([*arguments, "--side", side])) for side in ("trl", "a2tgpo")
    }
    for run in found.values():
        assert run["calls_per_rollout"] == 2
        assert run["rollouts"] + run["scoring"] + run["updates"] == pytest.approx(run["seconds"])
        assert run["tool_seconds_in_sum"] > 1.6  # 16 calls of 100 to 200 ms
        assert run["megabytes"] > 0
    assert found["trl"]["completion_tokens"] == found["a2tgpo"]["completion_tokens"]
    assert found["trl"]["tools"] == pytest.approx(found["trl"]["tool_seconds_in_sum"])
    assert found["a2tgpo"]["tools"] < 0.5 * found["a2tgpo"]["tool_seconds_in_sum"]


def test_labels_are_what_the_model_writes(arguments):
    _, tokenizer = agent_step.untrained(agent_step.parse(arguments))
    messages = agent_step.trace("Where is Lyon?", 2, agent_step.random.Random(0))
    labels = [label for label in agent_step.tokenized(messages, tokenizer)["labels"] if label != -100]
    written = tokenizer.decode(labels)
    assert written.count("<tool_call>") == 2 and '"step": 2' in written
    assert "<answer>" in written and "Now" not in written and "Lyon" not in written


def test_overlapping_calls_count_once():
    assert agent_step.busy_seconds([(4, 5), (0, 2), (1, 3), (1, 2)]) == 4


def run_of(seconds, calls_per_rollout=8):
    return {"seconds": seconds, "tools": seconds / 2, "megabytes": 1000, "calls_per_rollout": calls_per_rollout}


def test_sides_take_turns_and_are_paired():
    order, times = [], {"trl": iter([30, 60]), "a2tgpo": iter([10, 10]), "grpo": iter([10, 15])}

    def run(options, side):
        order.append(side)
        return run_of(next(times[side]))

    figures = agent_step.measure(agent_step.parse(["--rounds", "2"]), run)
    assert order == ["trl", "a2tgpo", "grpo", "grpo", "a2tgpo", "trl"]
    assert figures["trl_over"]["a2tgpo"] == {"median": 4.5, "min": 3, "max": 6}
    assert figures["trl_over"]["grpo"] == {"median": 3.5, "min": 3, "max": 4}
    assert figures["memory_over_trl"]["a2tgpo"]["median"] == 1
    assert figures["share_of_time_in_tools"]["trl"] == 0.5


def test_a_model_that_does_not_make_its_calls_is_not_measured():
    with pytest.raises(AssertionError, match=r"7\.5 calls"):
        agent_step.measure(agent_step.parse([]), lambda options, side: run_of(30, calls_per_rollout=7.5))
