"""Calls count in the similarity of rollouts."""

from difflib import SequenceMatcher

import pytest

from a2tgpo_trl.rewards import similarity_shaped
from a2tgpo_trl.rollout import ToolCall, Turn


def given(reward, **columns):
    return reward


def similarity(left, right):
    return SequenceMatcher(None, left, right).ratio()


def turn(text, *calls):
    return Turn([1], {"role": "assistant", "content": text}, calls=list(calls))


def shaped(rewards, turns, prompts=None, weight=0.5):
    prompts = prompts or ["q"] * len(turns)
    return similarity_shaped(given, similarity, weight)(prompts=prompts, turns=turns, reward=rewards)


def test_calls_of_a_chat_template_are_compared():
    passed = [turn("", ToolCall("search", {"query": "capital of France"})), turn("Paris")]
    same = [turn("", ToolCall("search", {"query": "capital of France"})), turn("Paris")]
    other = [turn("", ToolCall("search", {"query": "zebra"})), turn("Paris")]
    tool = [turn("", ToolCall("calculate", {"query": "capital of France"})), turn("Paris")]
    _, of_same, of_other, of_tool = shaped([1.0, 0.0, 0.0, 0.0], [passed, same, other, tool], weight=1.0)
    assert of_same == pytest.approx(1.0)
    assert of_other < of_tool < 1.0


def test_calls_are_json_whatever_their_arguments():
    odd = [turn("é", ToolCall("search", {"b": "é", "a": {1}}), ToolCall("unknown", error="unreadable"))]
    seen = []
    similarity_shaped(given, lambda *texts: seen.append(texts) or 0.0)(
        prompts=["q"] * 2, turns=[odd, odd], reward=[1.0, 0.0]
    )
    text = 'é\n{"arguments": {"a": "{1}", "b": "é"}, "name": "search"}\n{"arguments": {}, "name": "unknown"}'
    assert seen == [(text, text)]
