"""A run that is cut and goes on from its checkpoint is the run that was never cut, bit for bit, wherever that was."""

import logging
import pickle
import time
from importlib.metadata import version
from pathlib import Path

import pandas
import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.callbacks.run_state import OF_TRANSFORMERS, WHERE_AND_SHOWN
from a2tgpo_trl.integrations.checkpoints import damage_of
from a2tgpo_trl.rollout.loop import INSTANT
from conftest import search
from cutting import Cut, assert_same_run, chance, dataset, recorded, write_at_random
from launching import launch


@pytest.fixture
def trainer(build, tmp_path, monkeypatch):
    """`trainer(name, *callbacks, **options)`: its rollouts are drawn at random; it seeds the random numbers when it is made."""

    def make(name, *callbacks, sampled=False, **options):
        if not sampled:
            monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", write_at_random)
        defaults = dict(dataset=dataset(), reward=chance, max_steps=8, shuffle_dataset=True, tool_protocol="tags")
        defaults |= dict(per_device_train_batch_size=1 if "steps_per_generation" in options else 2)
        defaults |= dict(max_tool_calling_iterations=3, rollouts=None, output_dir=str(tmp_path / name), lockstep=True)
        return build(**defaults | options, callbacks=list(callbacks))

    return make


@pytest.fixture
def cut_run(trainer, tmp_path):
    """`cut_run(step, **options)`: the checkpoint of a run that was cut."""

    def run(step, **options):
        first = trainer("cut", Cut(step), **options)
        first.train()
        assert first.state.global_step == step
        return tmp_path / "cut" / f"checkpoint-{step}"

    return run


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if "goes on with fresh" in record.getMessage()]


DROPOUT = dict(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
CRITIC = dict(advantage_estimator="turn_ppo", critic_learning_rate=0.01)
CASES = {
    "between two windows": (4, dict(steps_per_generation=4)),
    "inside one": (5, dict(steps_per_generation=4)),
    "between two iterations": (5, dict(num_iterations=2, steps_per_generation=1, per_device_train_batch_size=4)),
    "inside an iteration": (5, dict(num_iterations=2)),
    "accumulation": (3, dict(steps_per_generation=4, gradient_accumulation_steps=2)),
    "LoRA": (5, dict(steps_per_generation=4, peft_config=LoraConfig(**DROPOUT))),
    "LoRA and a reference": (5, dict(steps_per_generation=4, beta=0.1, peft_config=LoraConfig(**DROPOUT))),
    "beliefs": (5, dict(steps_per_generation=4, advantage_estimator="a2tgpo", turn_advantage_schedule="linear")),
    "a critic": (5, dict(steps_per_generation=4, **CRITIC, lr_scheduler_type="linear")),
    "a critic on the policy": (5, dict(steps_per_generation=4, **CRITIC, critic_layers=0)),
    "skipped updates": (7, dict(steps_per_generation=4, advantage_estimator="grpo", skip_empty_updates=True)),
    "evaluation": (
        5,
        dict(
            steps_per_generation=4,
            eval_strategy="steps",
            eval_steps=2,
            eval_dataset=dataset(1),
            num_generations_eval=2,
        )
        | dict(per_device_eval_batch_size=2),
    ),
    "seldom logged": (
        5,
        dict(steps_per_generation=2, num_iterations=2, logging_steps=4, per_device_train_batch_size=2),
    ),
    "later epochs": (13, dict(steps_per_generation=4, dataset=dataset(3), max_steps=27)),
    "the end of an epoch": (12, dict(steps_per_generation=4, dataset=dataset(3), max_steps=15)),
    "a short last accumulation": (4, dict(steps_per_generation=4, gradient_accumulation_steps=5, dataset=dataset(3))),
    "several windows in a step": (
        3,
        dict(steps_per_generation=2, gradient_accumulation_steps=5, per_device_train_batch_size=2, turn_table_steps=2),
    ),
    "adaptive entropy": (5, dict(steps_per_generation=4, use_adaptive_entropy=True)),
    "trees": (5, dict(steps_per_generation=4, tree_chains=2, tree_choice="random", per_device_train_batch_size=2)),
    "sampling": (5, dict(steps_per_generation=4, tools=[], sampled=True, max_completion_length=12)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rest_of_a_run_is_the_same(trainer, cut_run, warnings, case):
    step, options = CASES[case]
    whole = trainer("whole", **options)
    whole.train()
    checkpoint = cut_run(step, **options)
    rest = trainer("cut", **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert_same_run(rest, whole)
    assert not warnings()


def test_a_reference(trainer, cut_run, tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")

    def options():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        return dict(steps_per_generation=4, beta=0.1, model=model)

    whole = trainer("whole", **options())
    whole.train()
    assert whole.state.log_history[-2]["kl"] > 0
    rest = trainer("cut", **options())
    rest.train(resume_from_checkpoint=str(cut_run(5, **options())))
    assert_same_run(rest, whole)


def test_the_speed_of_tools_does_not_matter_in_lockstep(trainer, cut_run):
    sleeps = iter([3 * INSTANT, 0] * 2)

    def slow_at_first(query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        time.sleep(next(sleeps, 0))
        return search(query)

    slow_at_first.__name__ = "search"
    options = dict(num_generations=8, steps_per_generation=8, tools=[slow_at_first])
    whole = trainer("whole", **options)
    whole.train()
    assert next(sleeps, None) is None  # or it was never slow
    rest = trainer("cut", **options)
    rest.train(resume_from_checkpoint=str(cut_run(5, **options)))
    assert_same_run(rest, whole)


def test_the_loss_that_is_returned_is_that_of_the_steps_since_the_cut(trainer, cut_run):
    whole = trainer("whole", steps_per_generation=4)
    whole.train()
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    checkpoint = cut_run(5, steps_per_generation=4, logging_steps=4)
    output = trainer("cut", steps_per_generation=4, logging_steps=4).train(resume_from_checkpoint=str(checkpoint))
    assert output.training_loss == pytest.approx(sum(losses[5:]) / 3, abs=1e-6)


def test_rows_that_are_streamed_for_the_first_time(trainer, cut_run):
    def options():
        stream = IterableDataset.from_generator(lambda: iter(dataset(3).to_list()))
        return dict(dataset=stream, steps_per_generation=4, max_steps=11)

    whole = trainer("whole", **options())
    whole.train()
    rest = trainer("cut", **options())
    rest.train(resume_from_checkpoint=str(cut_run(5, **options())))
    assert_same_run(rest, whole)


def test_completions_that_are_logged_are_the_same(trainer, cut_run, tmp_path):
    def noted(completions, log_extra, **kwargs):
        log_extra("note", [{"length": len(text)} for text in completions])
        log_extra("length", [len(text) for text in completions])
        return chance(completions, **kwargs)

    options = dict(steps_per_generation=4, log_completions=True, max_steps=6, reward=noted)
    trainer("whole", **options).train()
    checkpoint = cut_run(3, **options)
    trainer("cut", **options).train(resume_from_checkpoint=str(checkpoint))
    for step in range(1, 7):
        file = Path("completions") / f"completions_{step:05d}.parquet"
        left, right = (pandas.read_parquet(tmp_path / run / file) for run in ("cut", "whole"))
        assert len(right) == 4 and right["length"].dtype.kind == "i"
        pandas.testing.assert_frame_equal(left, right)


def test_records_that_were_thinned_after_the_cut_keep_their_numbers(trainer, cut_run):
    checkpoint = cut_run(2, steps_per_generation=1, per_device_train_batch_size=4)
    for file in (checkpoint.parent / "turns").glob("*-0000001.parquet"):
        file.unlink()
    rest = trainer("cut", steps_per_generation=1, per_device_train_batch_size=4, max_steps=3)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert {(row["step"], row["batch"]) for row in recorded(rest)} == {(0, 0), (2, 2)}


def test_a_trainer_that_trains_again_begins_with_fresh_rollouts(trainer, tmp_path):
    again = trainer("run", Cut(5), steps_per_generation=4)
    again.train()
    again.train()
    assert min(row["step"] for row in recorded(again)) == 0
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert (again.state.global_step, again._step) == (8, 8)


# ---- files that cannot be taken


class Harm:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def changed(**place):
    def change(file):
        state = torch.load(file, weights_only=True)
        torch.save(state | {"place": state["place"] | place}, file)

    return change


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


VERSIONS = ", ".join(f"{package} {version(package)}" for package in ("a2tgpo-trl", "trl", "transformers"))

DAMAGES = {
    "it has no run_state/rank-0.pt, which tells what is still to be trained on": Path.unlink,
    "run_state/rank-0.pt is damaged (empty)": lambda file: file.write_bytes(b""),
    "run_state/rank-0.pt is damaged (torn)": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "run_state/rank-0.pt is damaged (a byte)": flip_a_byte,
    "run_state/rank-0.pt is damaged (a pickle)": lambda file: file.write_bytes(
        pickle.dumps(Harm(file.parent / "harm"))
    ),
    "run_state/rank-0.pt is damaged (code)": lambda file: torch.save(Harm(file.parent / "harm"), file),
    "run_state/rank-0.pt holds something else (a list)": lambda file: torch.save([1], file),
    "run_state/rank-0.pt holds something else (weights)": lambda file: torch.save({"a": torch.ones(1)}, file),
    f"run_state/rank-0.pt was written with trl 0, and this is {VERSIONS}": changed(versions={"trl": "0"}),
    "run_state/rank-0.pt was written by 2 processes, and this run has 1": changed(processes=2),
    "run_state/rank-0.pt was written at step 3, and the checkpoint is of step 5": changed(step=3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_taken_is_named(trainer, cut_run, warnings, damage):
    checkpoint = cut_run(5, steps_per_generation=4)
    DAMAGES[damage](checkpoint / "run_state" / "rank-0.pt")
    assert damage_of(checkpoint) is None
    rest = trainer("cut", steps_per_generation=4)
    rest.train(resume_from_checkpoint=str(checkpoint))
    reason = damage.partition(" (")[0]
    assert warnings() == [
        f"{checkpoint}: {reason}. The run goes on with fresh rollouts, and not exactly as it would have without the cut."
    ]
    assert rest.state.global_step == 8
    assert sorted({row["step"] for row in recorded(rest)}) == [0, 4, 5]
    assert not (checkpoint / "run_state" / "harm").exists()


def test_other_options_are_named(trainer, cut_run, warnings):
    checkpoint = cut_run(5, steps_per_generation=4)
    rest = trainer("cut", steps_per_generation=4, temperature=0.7, num_generations=2, max_steps=6)
    rest.train(resume_from_checkpoint=str(checkpoint))
    (warning,) = warnings()
    assert "was written with other options (num_generations=4, now 2, temperature=1.0, now 0.7)" in warning
    assert rest.state.global_step == 6


def test_options_that_batches_do_not_depend_on_may_change(trainer, cut_run, warnings):
    checkpoint = cut_run(5, steps_per_generation=4)
    rest = trainer(
        "cut", steps_per_generation=4, learning_rate=1e-4, max_steps=6, turn_table_steps=7, turn_records=False
    )
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert not warnings() and rest._step == 6
    assert {*WHERE_AND_SHOWN, *OF_TRANSFORMERS} <= A2TGPOConfig.__dataclass_fields__.keys()


def test_the_file_is_whole_or_not_there(trainer, tmp_path, monkeypatch):
    run = trainer("run", steps_per_generation=4, max_steps=2, save_strategy="steps", save_steps=2)
    run.train()
    file = tmp_path / "run" / "checkpoint-2" / "run_state" / "rank-0.pt"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    before, write = file.read_bytes(), torch.save

    def killed(state, path):
        write(state, path)
        if Path(path).parent != file.parent:
            return
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run._save_rng_state(str(file.parents[1]))
    assert file.read_bytes() == before


def test_its_size_is_as_told(cut_run):
    checkpoint = cut_run(5, steps_per_generation=4, advantage_estimator="a2tgpo")
    batch = torch.load(checkpoint / "run_state" / "rank-0.pt", weights_only=True)["batches"][0]
    per_token = {}
    for part in ("completion", "prompt"):
        shape = batch[f"{part}_ids"].shape
        per_token[part] = sum(tensor.element_size() for tensor in batch.values() if tensor.shape == shape)
    assert len({batch[f"{part}_ids"].size(1) for part in per_token}) == 2
    page = (Path(__file__).parents[1] / "docs" / "resuming.md").read_text().replace("\n", " ")
    assert (
        f"{per_token['completion']} bytes for each token of a completion and {per_token['prompt']} for each token of a prompt"
        in page
    )


# ---- processes


@pytest.mark.processes
def test_two_processes(trainer, tmp_path, warnings):
    launch(2, str(Path(__file__).with_name("resuming_worker.py")), str(tmp_path))
    checkpoint = tmp_path / "cut" / "checkpoint-5"
    assert sorted(file.name for file in (checkpoint / "run_state").iterdir()) == ["rank-0.pt", "rank-1.pt"]
    alone = trainer("cut", steps_per_generation=4, max_steps=6, advantage_estimator="turn_ppo")
    alone.train(resume_from_checkpoint=str(checkpoint))
    (warning,) = warnings()
    assert "run_state/rank-0.pt was written by 2 processes, and this run has 1." in warning
