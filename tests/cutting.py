"""Runs that are cut, and how two runs are compared."""

import re

import torch
from datasets import Dataset
from transformers import TrainerCallback

from a2tgpo_trl.records import read_turns

TEXTS = (
    "<search>Lyon</search>",
    "<search>capital of France</search>",
    "<answer>Paris</answer>",
    "<answer>Rome</answer>",
)
BY_THE_CLOCK = re.compile(r"step_time|latency|runtime|per_second")


class Cut(TrainerCallback):
    """Ends a run after a step, with a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def dataset(size=5):
    rows = [{"prompt": f"Question {number}: where is Lyon?", "answer": ["Paris"]} for number in range(size)]
    return Dataset.from_list(rows)


def chance(completions, turns, **kwargs):
    """A reward that many rollouts have in common, some of them all of a group."""
    return [float("Paris" in text and len(own) < 3) for text, own in zip(completions, turns, strict=True)]


def write_at_random(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    """In place of sampling: a search or an answer for each row."""
    texts = [TEXTS[choice] for choice in torch.randint(len(TEXTS), (len(prompt_ids),))]
    return [trainer._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], None


def logged(trainer):
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    return [{name: value for name, value in row.items() if not BY_THE_CLOCK.search(name)} for row in rows]


def recorded(trainer):
    rows = read_turns(trainer.args.output_dir).to_pylist()
    for call in (call for row in rows for call in row["calls"]):
        call.pop("seconds")
    return rows


def assert_same(left, right, path):
    """Equal to the bit; NaN is equal to NaN."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    elif isinstance(left, torch.Tensor | float):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=lambda said: f"{path}: {said}")
    else:
        assert left == right, path


def assert_same_run(rest, whole, something_was_left=True):
    """Where nothing was left to train, what counts batches and updates is not read: there are none to count."""
    assert rest.state.global_step == whole.state.global_step == whole.state.max_steps
    assert_same(dict(rest.model.state_dict()), dict(whole.model.state_dict()), "weights")
    assert_same(rest.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    assert_same(rest.state.num_input_tokens_seen, whole.state.num_input_tokens_seen, "tokens")
    assert_same(logged(rest), logged(whole), "log")
    assert_same(recorded(rest), recorded(whole), "records")
    if something_was_left:
        assert_same(rest._recorder.state_dict(), whole._recorder.state_dict(), "recorder")
        assert_same(rest.skipped_updates.state_dict(), whole.skipped_updates.state_dict(), "skipped updates")
    if "values" in whole.signals:
        left, right = (dict(one.signals["values"].critic.state_dict()) for one in (rest, whole))
        assert_same(left, right, "critic")
