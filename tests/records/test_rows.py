"""Rollouts and their credit → rows."""

import math

import torch

from a2tgpo_trl.credit import TurnCredit, Turns
from a2tgpo_trl.records import RecordStore
from a2tgpo_trl.records.metrics import credit_metrics
from a2tgpo_trl.records.rows import credit_columns, turn_rows
from a2tgpo_trl.rollout import Rollout, StopReason, ToolCall, ToolResult, Turn

NAN = math.nan


def decode(ids):
    return [" ".join(map(str, row)) for row in ids]


def turn(ids, observation_ids=(), calls=(), **credit):
    message = {"role": "assistant", "content": ""}
    called, results = [call for call, _ in calls], [result for _, result in calls]
    return Turn(list(ids), message, called, results, observation_ids=list(observation_ids), credit=credit)


def test_rows():
    call = ToolCall("search", {"query": "Lyon"}), ToolResult("search", "A city.", seconds=0.5)
    bad = ToolCall("searhc", error="no such tool"), ToolResult("searhc", [{"type": "text"}], failed=True)
    rewards = {"exact": 1.0, "other": NAN}
    turns = [
        turn([1], [2], [call, bad], advantage=0.5, information_gain=0.1, bonus=None),
        turn([3], advantage=-0.5, information_gain=None, bonus=None),
    ]
    told = {"stop_reason": StopReason.ANSWERED, "answer": "Paris", "rewards": rewards, "reward": 1.0}
    other = [turn([4], advantage=0.25, information_gain=None, bonus=2.0)]
    rollouts = [Rollout([9], turns, **told), Rollout([8, 8], other, rewards={"exact": 0.0, "other": 0.0}, reward=0.0)]
    first, second, third = turn_rows(rollouts, 3, 4, decode)
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
    rollout = Rollout([9], [turn([1], calls=[call])], answer=f"a{half}", reward=1.0)
    (row,) = turn_rows([rollout], 0, 1, decode)
    assert (row["answer"], row["calls"][0]["name"], row["calls"][0]["result"]) == ("a?", "t?", "x?")
    assert '"query": "?"' in row["calls"][0]["arguments"]
    RecordStore(tmp_path, 2**20).append([{"step": 0, "batch": 0, **row}])


def test_results_that_are_no_json():
    inside = []
    inside.append(inside)
    calls = [(ToolCall("t", {(1, 2): 3}), ToolResult("t", content)) for content in ([{(1, 2): 3}], inside)]
    (row,) = turn_rows([Rollout([9], [turn([1], calls=calls)])], 0, 1, decode)
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
    columns = credit_columns(turns, credit, (0.2, 0.4))

    def are(name, expected):
        torch.testing.assert_close(columns[name], torch.tensor(expected), equal_nan=True)

    are("belief_before", [[0.0, 1.0], [0.0, 2.0], [0.5, NAN], [0.5, NAN]])
    are("belief_after", [[1.0, NAN], [2.0, 5.0], [NAN, NAN], [NAN, NAN]])
    are("information_gain", [[1.0, NAN], [2.0, 3.0], [NAN, NAN], [NAN, NAN]])
    are("normalized_gain", [[-0.5, NAN], [0.5, 1.5], [NAN, NAN], [NAN, NAN]])
    are("bonus", [[2.0, NAN], [4.0, 6.0], [NAN, NAN], [NAN, NAN]])
    are("turn_group_size", [[2.0, NAN], [2.0, 1.0], [NAN, NAN], [NAN, NAN]])
    are("outcome_advantage", [[1.0, 1.0], [-1.0, -1.0], [0.0, NAN], [0.0, NAN]])
    are("clip_low", [[0.7, 0.8], [0.9, 0.8], [0.8, 0.8], [0.8, 0.8]])
    are("clip_high", [[1.6, 1.4], [1.2, 1.4], [1.4, 1.4], [1.4, 1.4]])


def test_credit_columns_of_completions_whose_turns_share_an_advantage():
    outcome, num_turns = torch.tensor([0.5, -0.5]), torch.tensor([2, 1])
    turns = Turns(outcome, outcome, num_turns, num_turns - 1, 2)
    columns = credit_columns(turns, TurnCredit(outcome), (0.25, 0.5))
    assert columns.keys() == {"advantage", "outcome_advantage", "clip_scale", "clip_low", "clip_high"}
    expected = torch.tensor([[0.5, 0.5], [-0.5, NAN]])
    torch.testing.assert_close(columns["advantage"], expected, equal_nan=True)
    assert columns["clip_low"].tolist() == [[0.75, 0.75]] * 2 and columns["clip_high"].tolist() == [[1.5, 1.5]] * 2
    assert columns["clip_scale"].tolist() == [[1.0, 1.0]] * 2


def test_turn_parts_and_the_correlation_of_gains_with_outcomes():
    """Two groups of two; the first mixed. Its rollouts gain 2 and 1 with outcomes 1 and -1; those of the other gain 1 and nothing."""
    turns = Turns(
        outcome=torch.tensor([1.0, -1.0, 0.0, 0.0]),
        rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        num_turns=torch.tensor([2, 2, 2, 1]),
        num_tool_turns=torch.tensor([1, 1, 1, 0]),
        num_generations=2,
        signals={"beliefs": torch.tensor([[-3.0, -1.0, NAN], [-3.0, -2.0, NAN], [-3.0, -2.0, NAN], [-3.0, NAN, NAN]])},
    )
    advantages = torch.tensor([[1.5, 1.0], [-1.5, -1.0], [0.25, 0.0], [0.75, 9.0]])  # no second turn in the last
    metrics = credit_metrics(turns, TurnCredit(advantages))
    assert metrics["advantages/turn_part_abs_mean_mixed"] == 0.25
    assert math.isclose(metrics["advantages/turn_part_abs_mean_equal"], 1 / 3, rel_tol=1e-6)
    # gains 2, 1, 1 about 4/3: 2/3, -1/3, -1/3; outcomes 1, -1, 0: the product is 1, the norms √(6/9) and √2
    assert math.isclose(metrics["information_gain/outcome_correlation"], 1 / math.sqrt(12 / 9), rel_tol=1e-6)
