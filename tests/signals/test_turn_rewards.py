"""Turn rewards: from functions, coroutine functions, models and tools to advantages, metrics and records."""

import asyncio
import functools
import math

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

import tiny
from a2tgpo_trl import A2TGPOTrainer, ToolReward
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rewards import format_penalty, tool_reward
from a2tgpo_trl.signals.process_reward_model import ProcessRewardModel
from conftest import QUESTION

NAN = math.nan


def by_index(turns, **columns):
    """0.5, 1.0, 1.5, … and nothing for answers."""
    return [[None if "<answer>" in turn.text else (k + 1) / 2 for k, turn in enumerate(own)] for own in turns]


async def slow_ones(turns, answer, prompts, completions, **columns):
    assert len(answer) == len(prompts) == len(completions) == len(turns) and prompts[0] == QUESTION
    await asyncio.sleep(0.01)
    return [[1.0] * len(own) for own in turns]


def turns_of(trainer):
    return [
        turn
        for rollout in trainer.play([{"prompt": QUESTION, "answer": "Paris"}], num_generations=4)
        for turn in rollout.turns
    ]


def test_functions_reach_advantages_metrics_and_records(build, rows):
    trainer = build(
        advantage_estimator="mt_grpo",
        turn_reward_funcs=[by_index, slow_ones],
        turn_reward_weights=[2.0, 0.5],
        per_device_eval_batch_size=4,
    )
    trainer.train()
    records = read_turns(trainer.args.output_dir).to_pylist()
    first_batch = [row for row in records if row["step"] == 0]
    assert [row["turn_reward"] for row in first_batch] == [0.5, 1.5, 0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 2.5, 0.5]
    assert dict(first_batch[1]["turn_rewards"]) == {"by_index": 0.5, "slow_ones": 1.0}
    assert dict(first_batch[0]["turn_rewards"]) == {"by_index": None, "slow_ones": 1.0}
    logged = trainer.state.log_history[0]
    assert logged["turn_rewards/by_index/mean"] == pytest.approx((3 * 0.5 + 2 * 1.0 + 1.5) / 6)
    assert logged["turn_rewards/by_index/turn_1"] == 1.0 and logged["turn_rewards/slow_ones/turn_3"] == 1.0
    assert "turn_rewards/by_index/turn_3" not in logged
    # MT-GRPO compares the first turns, (0.5, 1.5, 1.5, 1.5); the same number of each rollout's second one earns nothing
    advantage = {(row["generation"], row["turn"]): row["advantage"] - row["outcome_advantage"] for row in first_batch}
    first = torch.tensor([0.5, 1.5, 1.5, 1.5])
    expected = (first - first.mean()) / (first.std(unbiased=False) + 1e-6)
    assert [advantage[i, 0] for i in range(4)] == pytest.approx(expected.tolist(), abs=1e-4)
    played = turns_of(trainer)
    assert [turn.credit["turn_reward"] for turn in played] == [row["turn_reward"] for row in first_batch]
    assert played[0].rewards == {"by_index": None, "slow_ones": 1.0}


def test_no_answer_column_is_needed(build, rows):
    trainer = build(
        advantage_estimator="gtpo",
        turn_reward_funcs=format_penalty,
        dataset=[{"prompt": QUESTION}] * 8,
        reward=lambda completions, **_: [float("Paris" in text) for text in completions],
        trainer=lambda train_dataset, **arguments: A2TGPOTrainer(
            train_dataset=_as_dataset(train_dataset), **arguments
        ),
    )
    trainer.train()
    rows = [row for row in read_turns(trainer.args.output_dir).to_pylist() if row["step"] == 0]
    assert [row["turn_reward"] for row in rows if row["turn"] == 0] == pytest.approx([-0.1, 0, 0, 0])
    assert not any(name.startswith("information_gain") for name in trainer.state.log_history[0])


def _as_dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def test_tools_reward_the_turns_that_call_them(build):
    def search(query: str):
        """
        Look something up.

        Args:
            query: What to look for.
        """
        return ToolReward("Lyon is in France.", 0.25) if query == "Lyon" else "Nothing."

    trainer = build(
        advantage_estimator="mt_grpo", tools=[search], turn_reward_funcs=[tool_reward], per_device_eval_batch_size=4
    )
    turns = turns_of(trainer)
    assert [turn.credit["turn_reward"] for turn in turns] == [
        None,
        0.25,
        None,
        0.25,
        None,
        None,
        None,
        None,
        None,
        None,
    ]
    assert turns[1].observation == "Lyon is in France." and turns[1].results[0].reward == 0.25


def test_nan_and_infinity_are_no_rewards(build):
    def odd(turns, **columns):
        return [[NAN, math.inf, 1.0, None][: len(own)] for own in turns]

    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[odd], per_device_eval_batch_size=4)
    assert {turn.credit["turn_reward"] for turn in turns_of(trainer)} == {None, 1.0}
    trainer.train()
    assert all(weights.isfinite().all() for weights in trainer.model.state_dict().values())


def test_partials_have_the_name_of_their_function(build):
    trainer = build(
        advantage_estimator="returns",
        turn_reward_funcs=[functools.partial(format_penalty, penalty=-1.0), format_penalty],
        per_device_eval_batch_size=4,
    )
    assert turns_of(trainer)[0].rewards == {"format_penalty": -1.0, "format_penalty_2": -0.1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda turns, **_: 1.0, "'<lambda>' returned float: return a list for each of the 4 rollouts"),
        (lambda turns, **_: [[1.0]], "returned 1 lists: return a list for each of the 4 rollouts"),
        (lambda turns, **_: [[1.0]] * 4, "returned 1 rewards for rollout 1, which has 2 turns: return one for each"),
        (lambda turns, **_: [["x"] * len(own) for own in turns], "returned 'x' for a turn: return a number, or None"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(build, given, message):
    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[given], per_device_eval_batch_size=4)
    with pytest.raises(ValueError) as error:
        turns_of(trainer)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(advantage_estimator="mt_grpo"), ValueError, "'mt_grpo' compares the rewards of turns, and there are none: give"),
        (dict(turn_reward_funcs=[by_index]), ValueError, "no effect with advantage_estimator='a2tgpo', which reads no turn"),
        (dict(advantage_estimator="gtpo", turn_reward_funcs=[3]), TypeError, "must be functions, models or names of models, got int"),
        (
            dict(advantage_estimator="gtpo", turn_reward_funcs=[by_index], turn_reward_weights=[1.0, 2.0]),
            ValueError,
            "turn_reward_weights has 2 numbers, and there are 1 turn_reward_funcs",
        ),
    ],
)  # fmt: skip
def test_bad_options(build, options, error, message):
    with pytest.raises(error) as raised:
        build(**options)
    assert message in str(raised.value)


# ---- process reward models -----------------------------------------------------------------------------------------

SMALL = dict(
    vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)


def model(cls, **options):
    torch.manual_seed(0)
    return cls(LlamaConfig(**SMALL, **options)).eval()


def text_before(turns, k):
    """The rollout up to the end of a turn, as such a model reads it."""
    pieces = [QUESTION]
    for turn in turns[: k + 1]:
        pieces += [turn.text, f"\n{turn.observation}\n" if turn.observation is not None else ""]
    return pieces[: 2 * k + 2]


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("cls", [LlamaForSequenceClassification, LlamaForTokenClassification])
def test_a_model_reads_each_turn_where_it_ends(build, cls, num_labels):
    judge = ProcessRewardModel(model(cls, num_labels=num_labels), tiny.tokenizer(), batch_size=3)
    trainer = build(advantage_estimator="mt_grpo", turn_reward_funcs=[judge], per_device_eval_batch_size=4)
    rollout = trainer.play([{"prompt": QUESTION, "answer": "Paris"}], num_generations=4)[2]
    tokenizer = tiny.tokenizer()
    for k, turn in enumerate(rollout.turns):
        pieces = text_before(rollout.turns, k)
        ids = [token for piece in pieces if piece for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        logits = judge.model(torch.tensor([ids])).logits[0]
        logits = logits[-1] if cls is LlamaForTokenClassification else logits
        expected = logits[0] if num_labels == 1 else logits.softmax(-1)[1]
        assert turn.credit["turn_reward"] == pytest.approx(expected.item(), abs=1e-5)
    assert len({turn.credit["turn_reward"] for turn in rollout.turns}) == 4


def test_a_model_is_given_by_its_folder(build, tmp_path):
    model(LlamaForTokenClassification, num_labels=2).save_pretrained(tmp_path / "judge")
    tiny.tokenizer().save_pretrained(tmp_path / "judge")
    trainer = build(
        advantage_estimator="gtpo", turn_reward_funcs=str(tmp_path / "judge"), per_device_eval_batch_size=4
    )
    assert all(0 < turn.rewards["judge"] < 1 for turn in turns_of(trainer))


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="LlamaModel is neither"):
        ProcessRewardModel(model(LlamaModel), tiny.tokenizer())


def test_a_folder_of_a_model_of_another_task_is_refused(tmp_path):
    """transformers would give it a new head, whose rewards are random."""
    model(LlamaForCausalLM).save_pretrained(tmp_path / "policy")
    tiny.tokenizer().save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="sequence or token classification, and LlamaForCausalLM is neither"):
        ProcessRewardModel(str(tmp_path / "policy"))
