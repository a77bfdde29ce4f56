"""Rollouts and their credit → rows."""

import math

import torch

from a2tgpo_trl.credit import TurnCredit, Turns
from a2tgpo_trl.records import RecordStore
from a2tgpo_trl.records.rows import RecordedRollout, credit_columns, split_turns, turn_rows
from a2tgpo_trl.rollout.tools.calls import ToolCall, ToolResult

NAN = math.nan


def decode(ids):
    return [" ".join(map(str, row)) for row in ids]


def test_split_turns():
    assert split_turns([1, 2, 3, 4, 5], [1, 1, 0, 0, 1]) == [([1, 2], [3, 4]), ([5], [])]
    assert split_turns([1, 2, 3], [1, 0, 0]) == [([1], [2, 3])]
    assert split_turns([1, 2], None) == [([1, 2], [])]
    assert split_turns([], None) == []


def test_rows():
    call = ToolCall("search", {"query": "Lyon"}), ToolResult("search", "A city.", seconds=0.5)
    bad = ToolCall("searhc", error="no such tool"), ToolResult("searhc", [{"type": "text"}], failed=True)
    rewards = {"exact": 1.0, "other": NAN}
    rollouts = [
        RecordedRollout([9], [1, 2, 3], [1, 0, 1], "Paris", rewards, 1.0, [[call, bad]], "answered"),
        RecordedRollout([8, 8], [4], None, None, {"exact": 0.0, "other": 0.0}, 0.0),
    ]
    credit = {"advantage": [[0.5, -0.5], [0.25, NAN]], "information_gain": [[0.1], [NAN]], "bonus": [[NAN], [2.0]]}
    first, second, third = turn_rows(rollouts, credit, 3, 4, decode)
    shared = {"group": 0, "generation": 3, "num_turns": 2, "prompt": "9", "answer": "Paris", "reward": 1.0}
    assert shared.items() <= first.items() and shared.items() <= second.items()
    assert (first["turn"], first["text"], first["observation"]) == (0, "1", "2")
    assert (first["num_tokens"], first["num_observation_tokens"]) == (1, 1)
    assert (second["turn"], second["text"], second["observation"], second["calls"]) == (1, "3", None, [])
    assert (first["advantage"], second["advantage"]) == (0.5, -0.5)
    assert (first["information_gain"], second["information_gain"]) == (0.1, None)
    assert [row["estimator_columns"] for row in (first, second, third)] == [
        {"bonus": None},
        {"bonus": None},
        {"bonus": 2.0},
    ]
    assert first["calls"] == [
        {"name": "search", "arguments": '{"query": "Lyon"}', "result": "A city.", "failed": False, "seconds": 0.5},
        {"name": "searhc", "arguments": "{}", "result": '[{"type": "text"}]', "failed": True, "seconds": None},
    ]
    assert (third["group"], third["generation"], third["prompt"], third["stop_reason"]) == (1, 0, "8 8", None)


def test_half_characters_do_not_end_the_run(tmp_path):
    half = "\ud83d"
    call = ToolCall(f"t{half}", {"query": half, "other": {1, 2}}), ToolResult("t", f"x{half}")
    rollout = RecordedRollout([9], [1], None, f"a{half}", {}, 1.0, [[call]])
    (row,) = turn_rows([rollout], {}, 0, 1, decode)
    assert (row["answer"], row["calls"][0]["name"], row["calls"][0]["result"]) == ("a?", "t?", "x?")
    assert '"query": "?"' in row["calls"][0]["arguments"]
    RecordStore(tmp_path, 2**20).append([{"step": 0, "batch": 0, **row}])


def test_results_that_are_no_json():
    inside = []
    inside.append(inside)
    calls = [(ToolCall("t", {(1, 2): 3}), ToolResult("t", content)) for content in ([{(1, 2): 3}], inside)]
    (row,) = turn_rows([RecordedRollout([9], [1], None, None, {}, 1.0, [calls])], {}, 0, 1, decode)
    assert [call["result"] for call in row["calls"]] == ["[{(1, 2): 3}]", "[[...]]"]
    assert row["calls"][0]["arguments"] == "{(1, 2): 3}"


def test_credit_columns():
    gains = torch.tensor([[1.0, NAN], [2.0, 3.0], [NAN, NAN], [NAN, NAN]])
    turns = Turns(
        outcome=torch.tensor([1.0, -1.0, 0.0, 0.0]),
        rewards=torch.zeros(4),
        num_turns=torch.tensor([2, 2, 1, 1]),
        num_tool_turns=torch.tensor([1, 2, 0, 0]),
        num_generations=2,
        signals={"beliefs": torch.tensor([[0.0, 1.0, NAN], [0.0, 2.0, 5.0], [0.5, NAN, NAN], [0.5, NAN, NAN]])},
    )
    scale = torch.tensor([[1.5, 1.0], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0]])
    credit = TurnCredit(gains.nan_to_num() + 1, scale, columns={"normalized_gain": gains - 1.5, "bonus": gains * 2})
    columns = credit_columns(turns, credit, slice(1, 3), (0.2, 0.4))
    assert columns["belief_before"][0] == [0.0, 2.0] and columns["belief_after"][0] == [2.0, 5.0]
    assert columns["information_gain"][0] == [2.0, 3.0] and columns["normalized_gain"][0] == [0.5, 1.5]
    assert columns["bonus"][0] == [4.0, 6.0]
    assert columns["turn_group_size"][0] == [2.0, 1.0] and math.isnan(columns["turn_group_size"][1][0])
    assert columns["outcome_advantage"][0] == [-1.0, -1.0]
    assert columns["outcome_advantage"][1][0] == 0.0 and math.isnan(columns["outcome_advantage"][1][1])
    torch.testing.assert_close(torch.tensor(columns["clip_low"]), torch.tensor([[0.9, 0.8], [0.8, 0.8]]))
    torch.testing.assert_close(torch.tensor(columns["clip_high"]), torch.tensor([[1.2, 1.4], [1.4, 1.4]]))


def test_credit_columns_of_completions_whose_turns_share_an_advantage():
    outcome, num_turns = torch.tensor([0.5, -0.5]), torch.tensor([2, 1])
    turns = Turns(outcome, outcome, num_turns, num_turns - 1, 2)
    columns = credit_columns(turns, TurnCredit(outcome), slice(0, 2), (0.25, 0.5))
    assert columns.keys() == {"advantage", "outcome_advantage", "clip_scale", "clip_low", "clip_high"}
    assert columns["advantage"][0] == [0.5, 0.5] and columns["advantage"][1][0] == -0.5
    assert math.isnan(columns["advantage"][1][1])
    assert columns["clip_low"] == [[0.75, 0.75]] * 2 and columns["clip_high"] == [[1.5, 1.5]] * 2
    assert columns["clip_scale"] == [[1.0, 1.0]] * 2
