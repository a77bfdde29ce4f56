"""A run that is cut and goes on from its checkpoint is the run that was never cut, bit for bit, wherever it was cut."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from a2tgpo_trl.records import read_turns

TEXTS = ("<search>Lyon</search>", "<search>capital of France</search>", "<answer>Paris</answer>", "<answer>Rome</answer>")
MEASURED_BY_THE_CLOCK = ("step_time", "latency", "runtime", "per_second", "profiling/")


class Cut(TrainerCallback):
    """Ends a run after a step, with a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.fixture
def runs(build, tmp_path, monkeypatch):
    """`runs(cut, **options)`: a run that was never cut, and one that was cut after a step and went on in another trainer."""

    def write(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        texts = [TEXTS[choice] for choice in torch.randint(len(TEXTS), (len(prompt_ids),))]
        return [trainer._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", write)
    rows = [{"prompt": f"Question {number}: where is Lyon?", "answer": ["Paris"]} for number in range(5)]
    defaults = dict(rollouts=None, dataset=Dataset.from_list(rows), max_steps=8, shuffle_dataset=True, max_tool_calling_iterations=3)

    def pair(cut, **options):
        def trainer(name, *callbacks):
            return build(**defaults | options, output_dir=str(tmp_path / name), callbacks=list(callbacks))

        whole = trainer("whole")
        whole.train()
        first = trainer("cut", Cut(cut))  # only now: a trainer seeds the random numbers when it is made
        first.train()
        assert first.state.global_step == cut
        rest = trainer("cut")
        rest.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{cut}"))
        return whole, rest

    return pair


def logged(trainer):
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    return [{name: value for name, value in row.items() if not any(part in name for part in MEASURED_BY_THE_CLOCK)} for row in rows]


def recorded(trainer):
    rows = read_turns(trainer.args.output_dir).to_pylist()
    for call in (call for row in rows for call in row["calls"]):
        call.pop("seconds")
    return rows

def assert_same(left, right, path=""):
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    else:
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=lambda said: f"{path}: {said}") if isinstance(left, torch.Tensor | float) else None
        assert isinstance(left, torch.Tensor | float) or left == right, path

def assert_same_run(whole, rest):
    assert rest.state.global_step == whole.state.global_step
    assert_same(dict(rest.model.state_dict()), dict(whole.model.state_dict()), "weights")
    assert_same(rest.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    assert_same(logged(rest), logged(whole), "log")
    assert_same(recorded(rest), recorded(whole), "records")


WINDOWS = {
    "border": (4, dict(steps_per_generation=4)),
    "inside": (5, dict(steps_per_generation=4)),
    "iterations": (5, dict(num_iterations=2)),
    "accumulation": (3, dict(steps_per_generation=4, gradient_accumulation_steps=2)),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_w(runs, case):
    cut, options = WINDOWS[case]
    options = dict(per_device_train_batch_size=1 if "steps_per_generation" in options else 2) | options
    whole, rest = runs(cut, **options)
    print(sorted(whole.state.log_history[0]))
    assert_same_run(whole, rest)
