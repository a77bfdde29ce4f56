"""Turn reward functions, on turns by hand."""

import pytest

from a2tgpo_trl.rewards import format_penalty, tool_reward
from a2tgpo_trl.rollout import ToolCall, ToolResult, Turn


def turn(text="x", calls=(), results=()):
    return Turn([1], {"role": "assistant", "content": text}, calls=list(calls), results=list(results))


READ = ToolCall("search", {"query": "Lyon"})
BROKEN = ToolCall("search", {}, error="no JSON")


def test_the_first_turn_has_to_call_and_calls_have_to_be_readable():
    rollouts = [
        [turn()],  # answers at once
        [turn(calls=[READ]), turn()],  # as it should be
        [turn(calls=[READ]), turn(calls=[READ, BROKEN]), turn()],  # one of two calls cannot be read
        [turn(calls=[BROKEN]), turn()],
        [],
    ]
    assert format_penalty(rollouts) == [[-0.1], [0.0, 0.0], [0.0, -0.1, 0.0], [-0.1, 0.0], []]
    assert format_penalty(rollouts[:1], penalty=-1.0, answer=["Paris"]) == [[-1.0]]


def test_a_turn_has_what_its_calls_gave():
    first, second, plain = (ToolResult("search", "…", reward=reward) for reward in (0.25, -1.0, None))
    rollouts = [[turn(results=[first, second, plain]), turn(results=[plain]), turn()], [turn(results=[first])], []]
    assert tool_reward(rollouts, answer=["Paris"] * 3) == [[-0.75, None, None], [0.25], []]


def test_the_tool_reward_of_zero_is_a_reward():
    assert tool_reward([[turn(results=[ToolResult("search", "…", reward=0.0)])]]) == [[0.0]]


@pytest.mark.parametrize("function", [format_penalty, tool_reward])
def test_nothing_for_no_rollouts(function):
    assert function([]) == []
