"""What is loaded trains: the trainer's checks, its steps and the rewards read it as it is."""

import json

import pytest
import torch
from test_data_layouts import ROWS

import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.checks import check_arguments
from a2tgpo_trl.data import load_questions
from a2tgpo_trl.rewards import exact_match_reward

QUESTION = "What is the capital of the country where Lyon is?"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "train.jsonl"
    row = {"question": QUESTION, "golden_answers": ["Paris", "Lutetia"]}
    path.write_text((json.dumps(row) + "\n") * 8)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_the_checks_and_the_rewards_accept_each_layout(name, streaming, tmp_path):
    row, aliases = ROWS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    loaded = load_questions(tmp_path / "rows.jsonl", streaming=streaming)
    args = A2TGPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    check_arguments(args, loaded, {"nq": loaded, "popqa": loaded}, tiny.tokenizer(), [], None)
    completions = [f"<answer>{answer}</answer>" for answer in ("the " + aliases[-1], "Atlantis")]
    assert exact_match_reward(completions, [next(iter(loaded))["answer"]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loaded_set_trains(streaming, path, build):
    trainer = build(dataset=load_questions(path, streaming=streaming), reward=exact_match_reward)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    history = trainer.state.log_history
    assert next(log["reward"] for log in history if "reward" in log) == 0.75  # three of four rollouts say Paris
