"""An estimator of one's own: what the documentation shows, what follows from what it states, and errors in words."""

import importlib
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import HfArgumentParser

import a2tgpo_trl
import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import ESTIMATORS, GRPO, IGPO, Estimator, TurnCredit, estimator_of
from a2tgpo_trl.functional import spread_turns
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.records.rows import turn_rows
from a2tgpo_trl.report import as_markdown, shown_rollout
from a2tgpo_trl.rewards import format_penalty
from conftest import QUESTION, needed_by

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_method.md").read_text(encoding="utf-8")


class FirstTurn(Estimator):
    """A bonus for the first turn, beside the outcome; nothing is measured."""

    columns = ("first_turn",)

    def __init__(self, bonus: float = 0.5):
        self.bonus = bonus

    def credit(self, turns, options):
        bonus = torch.zeros(len(turns.outcome), turns.max_turns, device=turns.outcome.device)
        bonus[:, 0] = self.bonus
        return TurnCredit(turns.outcome.unsqueeze(1) + bonus, columns={"first_turn": bonus})


def test_the_documented_example_trains(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(script.splitlines()) <= 40
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.chat_tokenizer().save_pretrained(tmp_path / "model")
    toy = "max_completion_length=16, max_steps=2, use_cpu=True, bf16=False, report_to=[], save_steps=1, logging_steps=1, "
    for shown, tried in {
        "Qwen/Qwen3-0.6B": str(tmp_path / "model"),
        'A2TGPOConfig("outputs/turn-bonus", ': f'A2TGPOConfig("{tmp_path}/run", {toy}',
    }.items():
        assert script.count(shown) == 1
        script = script.replace(shown, tried)
    (tmp_path / "turn_bonus_example.py").write_text(script, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        trainer = importlib.import_module("turn_bonus_example").trainer
        assert trainer.state.global_step == 2 and trainer.estimator.bonus == 0.2
        assert {"turn_bonus/mean", "belief/first"} <= set(trainer.state.log_history[0])
        saved = torch.load(tmp_path / "run" / "checkpoint-2" / "training_args.bin", weights_only=False)
        assert saved.estimator.bonus == 0.2
    finally:
        sys.modules.pop("turn_bonus_example", None)


def test_the_documented_example_by_hand():
    (source,) = re.findall(r"class TurnBonus.*?(?=\npassages)", PAGE, flags=re.DOTALL)
    namespace = {}
    exec("import torch\nfrom a2tgpo_trl.credit import *\nfrom a2tgpo_trl.functional import *\n" + source, namespace)
    turns = a2tgpo_trl.credit.Turns(
        outcome=torch.tensor([1.0, 0.0]),
        rewards=torch.tensor([1.0, torch.nan]),
        num_turns=torch.tensor([3, 2]),
        num_tool_turns=torch.tensor([2, 1]),
        num_generations=2,
        signals={"beliefs": torch.tensor([[-3.0, -1.0, -2.0, torch.nan], [-3.0, -1.0, torch.nan, torch.nan]])},
    )
    credit = namespace["TurnBonus"](0.2).credit(turns, type("Options", (), {"turn_gamma": 0.5}))
    # gains +2, -1: bonuses 0.2, -0.2; 1 + 0.2 - 0.5 · 0.2, 1 - 0.2, 1; nobody scored the other
    torch.testing.assert_close(credit.advantages, torch.tensor([[1.1, 0.8, 1.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("choice", [FirstTurn, FirstTurn(0.25)], ids=["class", "object"])
def test_a_method_without_beliefs_needs_neither_answers_nor_a_fast_tokenizer(build, choice, tmp_path):
    trainer = build(
        advantage_estimator=choice,
        dataset=Dataset.from_list([{"prompt": QUESTION}] * 8),
        reward=lambda completions, **_: [float(len(text)) for text in completions],
    )
    trainer.train()
    bonus = estimator_of(choice).bonus
    rows = read_turns(trainer.args.output_dir).to_pylist(maps_as_pydicts="strict")
    for row in rows:
        assert row["estimator_columns"] == {"first_turn": bonus if row["turn"] == 0 else 0.0}
        assert row["advantage"] - row["outcome_advantage"] == pytest.approx(row["estimator_columns"]["first_turn"])
        assert row["belief_before"] is row["information_gain"] is row["normalized_gain"] is None
    first = trainer.state.log_history[0]
    # turns of the rollouts: 1, 2, 4, 3 of up to 4 columns; the mean is over all cells that are not NaN
    assert first["first_turn/mean"] == pytest.approx(bonus / 4)
    assert first["advantages/turn_part_abs_mean"] == pytest.approx(bonus * 4 / 10)
    assert not any(name.startswith(("information_gain", "belief", "clip_scale")) for name in first)


def test_its_credit_reaches_the_loss_tables_and_what_is_shown(score, rows):
    batch, trainer = score(advantage_estimator=FirstTurn)
    theirs, _ = score(advantage_estimator="grpo")
    bonus = torch.tensor([[0.5, 0.0, 0.0, 0.0]] * 4)
    expected = spread_turns(theirs["advantages"].unsqueeze(1) + bonus, batch["turn_ids"], 0.0)
    assert torch.equal(batch["advantages"], expected)
    assert "clip_scale" not in batch and "information_gain" not in batch
    played = trainer.play(rows[:4])[2]
    assert [turn.credit["first_turn"] for turn in played.turns] == [0.5, 0.0, 0.0, 0.0]
    table = as_markdown(shown_rollout(turn_rows([played], 0, 4, trainer._tokenizer.batch_decode), "A question"))
    header, _, first, *_ = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    assert header[-2].strip() == "first_turn" and first[-2].strip() == "+0.50"


def test_completions_table_has_its_column(build, tmp_path):
    trainer = build(advantage_estimator=FirstTurn, log_completions=True, max_steps=1)
    trainer.train()
    (file,) = (Path(trainer.args.output_dir) / "completions").glob("*.parquet")
    assert list(pd.read_parquet(file)["first_turn"][0]) == [0.5]


def test_a_reward_function_of_the_name_of_a_column_gets_a_number(build):
    def first_turn(completions, **kwargs):
        return [1.0] * len(completions)

    assert build(advantage_estimator=FirstTurn, reward=first_turn).reward_func_names == ["first_turn_2"]


def test_options_can_be_written_and_read_back(config):
    args = config(advantage_estimator=FirstTurn(0.25))
    assert json.loads(args.to_json_string())["advantage_estimator"].endswith("test_your_own_method.FirstTurn")
    assert args.to_sanitized_dict()["advantage_estimator"] == args.to_dict()["advantage_estimator"]
    assert config().to_dict()["advantage_estimator"] == "a2tgpo"
    (parsed,) = HfArgumentParser(A2TGPOConfig).parse_args_into_dataclasses(
        ["--output_dir", "x", "--advantage_estimator", "igpo", "--use_cpu", "--bf16", "false"]
    )
    assert isinstance(parsed.estimator, IGPO)


class ByTurn(Estimator):
    defaults = {"importance_sampling_level": "turn", "epsilon": 0.01}


def test_defaults_of_a_method_are_trls_unless_it_says_so(config):
    args = config(advantage_estimator=ByTurn)
    assert (args.importance_sampling_level, args.loss_type, args.skip_empty_updates) == ("turn", "dapo", False)
    assert args.epsilon == 0.01
    args = config(advantage_estimator=FirstTurn)
    assert {name: getattr(args, name) for name in GRPO.defaults} == GRPO.defaults


class Measured(Estimator):
    signals = ("beliefs",)


class Unmeasured(Estimator):
    signals = ("noise",)


class Misspelt(Estimator):
    options = ("turn_gama",)


class Fixing(Estimator):
    defaults = {"turn_rescale": False}


class Unread(Estimator):
    defaults = {"turn_gamma": 0.9}


class Unpicklable(Estimator):
    def __init__(self):
        self.function = lambda: None


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        (dict, {}, "got <class 'dict'>. For a method of your own give a subclass of a2tgpo_trl.credit.Estimator"),
        (FirstTurn, dict(turn_gamma=0.9), "turn_gamma=0.9 has no effect.*choose 'a2tgpo' or 'igpo'"),
        (FirstTurn, dict(turn_rescale=False), "turn_rescale=False has no effect.*choose 'a2tgpo'"),
        (FirstTurn, dict(belief_measure="prob"), "belief_measure='prob' has no effect.*choose 'a2tgpo' or 'igpo'"),
        (Measured, dict(turn_gamma=0.9), "turn_gamma=0.9 has no effect"),
        (
            Unmeasured,
            {},
            r"needs 'noise' with these options, which is not measured: there are beliefs, turn_rewards, states\b.*\. Choose another",
        ),
        (Misspelt, {}, r"Misspelt.options names 'turn_gama', which is no option of A2TGPOConfig"),
        (Fixing, {}, r"Fixing.defaults names 'turn_rescale', which cannot depend on the estimator"),
        (Unread, {}, r"Unread.defaults names 'turn_gamma', which Unread.options does not: add it there"),
        (Unpicklable(), {}, r"advantage_estimator=Unpicklable cannot be pickled, and checkpoints hold the options"),
    ],
)
def test_statements_that_cannot_hold(config, choice, options, message):
    with pytest.raises(ValueError, match=message):
        config(advantage_estimator=choice, **options)


def test_belief_options_are_read_by_whoever_measures_beliefs(config):
    assert config(advantage_estimator=Measured, belief_measure="prob").belief_measure == "prob"


def test_only_stated_options_are_given(config):
    args = config(advantage_estimator="igpo", turn_gamma=0.5)
    assert vars(args.options_for(args.estimator)) == {
        "turn_gamma": 0.5,
        "turn_credit_groups": "all",
        "gain_noise_floor": 0.0,
    }


class Wrong(Estimator):
    """Gives what it is made with."""

    def __init__(self, shape=(4, 4), names=(), fill=1.0):
        self.shape, self.names, self.fill = shape, names, fill

    def credit(self, turns, options):
        columns = {name: torch.zeros(4, 4) for name in self.names}
        return TurnCredit(torch.full(self.shape, self.fill), columns=columns)


class Reserved(FirstTurn):
    columns = ("turn",)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Wrong((4, 9)), r"Wrong.credit gave advantages of shape \(4, 9\): expected \(4, 4\) or \(4,\)"),
        (Wrong(names=("more",)), r"Wrong.credit gave the columns \['more'\], and Wrong.columns states \[\]"),
        (Wrong(fill=float("nan")), r"Wrong.credit gave advantages that are NaN"),
        (Reserved(), r"Reserved.columns names 'turn', which is a column of the completions table or of turn records"),
    ],
)
def test_credit_that_does_not_fit(score, estimator, message):
    with pytest.raises(ValueError, match=message):
        score(advantage_estimator=estimator)


class Counting(FirstTurn):
    """Remembers how often it was asked."""

    asked = 0

    def credit(self, turns, options):
        self.asked += 1
        return super().credit(turns, options)


def test_one_object_credits_all_batches(build):
    trainer = build(advantage_estimator=Counting, max_steps=4)  # two updates a batch
    trainer.train()
    assert trainer.estimator.asked == 2


def test_a_class_without_credit(score):
    with pytest.raises(NotImplementedError, match=r"Measured has no method credit\(turns, options\)"):
        score(advantage_estimator=Measured)


def test_nothing_asks_for_an_estimator_by_name():
    sources = {path: path.read_text(encoding="utf-8") for path in Path(a2tgpo_trl.__file__).parent.rglob("*.py")}
    assert len(sources) > 50
    asking = re.compile(r"advantage_estimator\s*(==|!=|in |not in )")
    assert not [path.name for path, text in sources.items() if asking.search(text)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_reads_what_it_states(score, name):
    """Stated options are the only ones given, so that one that is not stated would fail."""
    functions = [format_penalty] if name in ("gtpo", "mt_grpo", "returns") else None
    batch, trainer = score(
        advantage_estimator=name, turn_reward_funcs=functions, per_device_train_batch_size=4, **needed_by(name)
    )
    assert (batch["advantages"] != 0).any()
    assert type(trainer.estimator) is ESTIMATORS[name]
