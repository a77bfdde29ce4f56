"""Turn records of a run of the trainer."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from a2tgpo_trl.records import SCHEMA, read_turns
from conftest import GROUP, QUESTION


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_records_are_the_credit_that_was_trained_on(build, folder, monkeypatch):
    trainer = build()
    batches = []
    score = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda rows: batches.append(score(rows)) or batches[-1]
    )
    trainer.train()
    table = read_turns(folder)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["turn"] for row in rows] == [0, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert [row["generation"] for row in rows] == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert {(row["step"], row["batch"], row["group"]) for row in rows} == {(0, 0, 0)}
    assert {(row["prompt"], row["answer"]) for row in rows} == {(QUESTION, "Paris")}
    assert [row["reward"] for row in rows] == [0.0] + [1.0] * 9
    assert rows[0]["rewards"] == [("correct", 0.0)]
    assert {row["stop_reason"] for row in rows} == {"answered"}

    (batch,) = batches
    for row in rows:
        i, k = row["generation"], row["turn"]
        own = batch["turn_ids"][i] == k
        assert row["text"] == GROUP[i][k].removesuffix("<|im_end|>")  # the answer ends at its tag
        assert row["num_tokens"] == own.sum()
        assert row["advantage"] == pytest.approx(batch["advantages"][i][own][0].item())
        assert row["clip_scale"] == pytest.approx(batch["clip_scale"][i][own][0].item())
        assert row["clip_low"] == pytest.approx(1 - 3e-3 * row["clip_scale"])
        assert row["clip_high"] == pytest.approx(1 + 4e-3 * row["clip_scale"])
        gain = batch["information_gain"][i, k].item()
        if k == row["num_turns"] - 1:
            assert row["information_gain"] is row["belief_after"] is row["turn_group_size"] is None and math.isnan(
                gain
            )
            assert row["observation"] is None and row["calls"] == [] and row["belief_before"] is not None
        else:
            assert row["information_gain"] == pytest.approx(gain)
            assert row["belief_after"] - row["belief_before"] == pytest.approx(gain, abs=1e-5)
            assert row["turn_group_size"] == [3, 2, 1][k]
            (call,) = row["calls"]
            assert call["name"] == "search" and call["result"] in row["observation"] and not call["failed"]
            assert 0 <= call["seconds"] < 5
    assert rows[1]["calls"][0]["arguments"] == '{"query": "Lyon"}'


def test_tokens_are_all_there(build, folder):
    trainer = build(max_completion_length=60)  # some are cut
    trainer.train()
    rows = read_turns(folder).to_pylist()
    for i in range(4):
        turns = [row for row in rows if row["generation"] == i]
        assert [row["turn"] for row in turns] == list(range(turns[0]["num_turns"]))
        assert sum(row["num_tokens"] + row["num_observation_tokens"] for row in turns) <= 60
    assert "overlong_observation" in {row["stop_reason"] for row in rows}


@pytest.mark.parametrize("estimator", ["a2tgpo", "grpo"])
def test_masked_completions_are_recorded_without_an_advantage(build, folder, estimator):
    trainer = build(max_completion_length=60, mask_truncated_completions=True, advantage_estimator=estimator)
    trainer.train()
    rows = read_turns(folder).to_pylist()
    masked = [row for row in rows if row["advantage"] is None]
    assert masked and all(row["text"] for row in masked)
    assert {row["stop_reason"] for row in masked} == {"overlong_observation"}


def test_answers_that_are_no_text_are_no_matter_to_grpo(build, folder):
    dataset = Dataset.from_list([{"prompt": QUESTION, "answer": 42}] * 8)
    trainer = build(
        advantage_estimator="grpo", dataset=dataset, reward=lambda completions, **_: [1.0] * len(completions)
    )
    trainer.train()
    assert set(read_turns(folder)["answer"].to_pylist()) == {"42"}


def test_a_rollout_without_a_reward_has_none(build, folder):
    def picky(completions, **kwargs):
        return [None if "Rome" in text else 1.0 for text in completions]

    build(reward=picky).train()
    rewards = {row["generation"]: row["reward"] for row in read_turns(folder).to_pylist()}
    assert math.isnan(rewards.pop(0)) and set(rewards.values()) == {1.0}


def test_igpo_discounts_the_outcome(build, folder):
    trainer = build(advantage_estimator="igpo", turn_gamma=0.5)
    trainer.train()
    rows = [row for row in read_turns(folder).to_pylist() if row["generation"] == 3]
    first, second, answer = (row["outcome_advantage"] for row in rows)
    assert first == pytest.approx(answer / 4) and second == pytest.approx(answer / 2) and answer > 0
    assert rows[-1]["advantage"] == pytest.approx(answer)
    parts = [row["advantage"] - row["outcome_advantage"] for row in rows]
    assert parts[0] == pytest.approx(rows[0]["normalized_gain"] + rows[1]["normalized_gain"] / 2, abs=1e-5)


def test_rewards_of_the_same_name_all_count(build, folder):
    rewards = [lambda completions, **_: [1.0] * len(completions), lambda completions, **_: [0.5] * len(completions)]
    build(reward=rewards, reward_weights=[1.0, 4.0]).train()
    assert set(read_turns(folder)["reward"].to_pylist()) == {3.0}


def test_grpo_has_outcomes_only(build, folder):
    trainer = build(advantage_estimator="grpo")
    trainer.train()
    rows = read_turns(folder).to_pylist()
    assert [row["turn"] for row in rows] == [0, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert all(row["information_gain"] is row["belief_before"] is None for row in rows)
    assert [row["advantage"] for row in rows] == [row["outcome_advantage"] for row in rows]
    outcome = (torch.tensor([0.0, 1, 1, 1]) - 0.75) / (0.5 + 1e-4)
    assert [row["advantage"] for row in rows] == pytest.approx([outcome[row["generation"]].item() for row in rows])
    assert {row["clip_scale"] for row in rows} == {1.0}


def test_records_do_not_change_training(build, folder, tmp_path):
    with_records, without = build(), build(turn_records=False, output_dir=str(tmp_path / "without"))
    with_records.train()
    without.train()
    assert (folder / "turns").exists() and not (tmp_path / "without" / "turns").exists()
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_records.model.state_dict()[name]), name


def test_another_run_in_the_same_folder_loses_nothing(build, folder, caplog):
    build().train()
    first = (folder / "turns" / "00000000-0000000.parquet").read_bytes()
    for _ in range(2):
        build().train()
    assert f"were moved to {folder / 'turns-2'}" in caplog.text
    assert (folder / "turns-1" / "00000000-0000000.parquet").read_bytes() == first
    assert [sum(1 for _ in (folder / name).iterdir()) for name in ("turns", "turns-1", "turns-2")] == [1, 1, 1]


def test_a_resumed_run_goes_on(build, folder, caplog):
    build(max_steps=4, save_strategy="steps", save_steps=2).train()
    assert sorted(set(read_turns(folder, ["step"])["step"].to_pylist())) == [0, 2]
    first = (folder / "turns" / "00000000-0000000.parquet").read_bytes()
    build(max_steps=6).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    table = read_turns(folder, ["step", "batch"]).to_pylist()
    assert sorted({(row["step"], row["batch"]) for row in table}) == [(0, 0), (2, 1), (4, 2)]
    assert (folder / "turns" / "00000000-0000000.parquet").read_bytes() == first
    assert "Turn records of 1 batches from step 2 on were deleted" in caplog.text


def test_evaluation_and_play_are_not_recorded(build, folder, rows):
    trainer = build(eval_dataset=Dataset.from_list(rows[:1]), per_device_eval_batch_size=4)
    trainer.play(rows[:1], num_generations=4)
    trainer.evaluate()
    assert not Path(folder / "turns").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"turn_records_max_mb": 0}, "turn_records_max_mb must be positive, got 0"),
        ({"turn_table_steps": -1}, "turn_table_steps must be at least 0"),
    ],
)
def test_bad_options(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)
