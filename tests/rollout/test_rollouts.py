"""Rollouts that another loop played, from its tokens, masks and completions."""

import pickle

import pytest

import tiny
from a2tgpo_trl.rollout import Rollout, ToolCall, Turn, read_rollouts
from a2tgpo_trl.rollout.rollout import split_turns


@pytest.mark.parametrize(
    ("ids", "mask", "leading", "turns"),
    [
        ([1, 2, 3, 4, 5], [1, 1, 0, 0, 1], [], [([1, 2], [3, 4]), ([5], [])]),
        ([1, 2, 3], [1, 0, 0], [], [([1], [2, 3])]),
        ([1, 2], None, [], [([1, 2], [])]),
        ([1, 2, 3, 4], [0, 0, 1, 0], [1, 2], [([3], [4])]),
        ([1, 2], [0, 0], [1, 2], []),
        ([], None, [], []),
    ],
)
def test_split_turns(ids, mask, leading, turns):
    assert split_turns(ids, mask) == (leading, turns)
    (rollout,) = read_rollouts([[9]], [ids], None if mask is None else [mask], ["x"], tiny.tokenizer())
    assert rollout.completion_ids == ids and rollout.tool_mask == ([1] * len(ids) if mask is None else mask)
    assert rollout.completion_length == len(ids)


def ids_of(text):
    return tiny.tokenizer()(text)["input_ids"]


def test_messages_tell_of_calls_and_results():
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "Lyon"}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "search", "content": "{'error': 'no such place'}"},
        {"role": "assistant", "content": "Paris"},
    ]
    pieces = [("a", 1), ("b", 0), ("c", 1)]
    ids = [token for text, _ in pieces for token in ids_of(text)]
    mask = [on for text, on in pieces for _ in ids_of(text)]
    (rollout,) = read_rollouts([[9]], [ids], [mask], [messages], tiny.tokenizer())
    first, last = rollout.turns
    assert first.calls == [ToolCall("search", {"query": "Lyon"})] and first.results[0].failed
    assert first.observation == "{'error': 'no such place'}" and last.text == "Paris" and last.observation is None
    assert rollout.messages == messages and rollout.stop_reason is None


def test_text_is_decoded_turn_by_turn():
    """One text for several turns does not say where they are; the tokens do."""
    pieces = [("<search>Lyon</search>", 1), ("\n<result>Lyon is in France.</result>\n", 0), ("Paris", 1)]
    ids = [token for text, _ in pieces for token in ids_of(text)]
    mask = [on for text, on in pieces for _ in ids_of(text)]
    (rollout,) = read_rollouts([[9]], [ids], [mask], ["".join(text for text, _ in pieces)], tiny.tokenizer())
    assert [(turn.text, turn.observation) for turn in rollout.turns] == [
        ("<search>Lyon</search>", "\n<result>Lyon is in France.</result>\n"),
        ("Paris", None),
    ]


def test_a_turn_is_shown_without_its_tokens():
    shown = repr(Turn(list(range(5000)), {"role": "assistant", "content": "Paris"}, observation_ids=list(range(5000))))
    assert "Paris" in shown and len(shown) < 300


def test_rollouts_travel_between_processes():
    rollout = Rollout([1], [Turn([2], {"content": "x"}, [ToolCall("search", {"query": "y"})])], reward=1.0)
    assert pickle.loads(pickle.dumps(rollout)) == rollout
