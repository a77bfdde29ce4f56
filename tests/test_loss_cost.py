"""The loss override costs nothing: a profile of a training step, against GRPOTrainer's on the same batch."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import tiny

# What makes the host wait for the device: reading a number, and shapes that hang on values
WAITING = (
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::unique_dim",
    "aten::_unique2",
)
TURN = "<search>Lyon</search>"
ANSWER = "<answer>Paris</answer><|im_end|>"


def rollouts(num_rows, num_turns):
    """One row without a tool call, so that turns and rewards differ."""
    return [[*[TURN] * (i and num_turns), ANSWER if i else "<answer>no</answer><|im_end|>"] for i in range(num_rows)]


def batch_of(build, num_rows, num_turns, **options):
    trainer = build(
        rollouts(num_rows, num_turns),
        num_generations=num_rows,
        per_device_train_batch_size=num_rows,
        num_iterations=2,
        max_completion_length=1000,
        model=tiny.model(max_position_embeddings=4096),
        **options,
    )
    trainer.model.train()
    rows = [dict(row) for row in list(trainer.train_dataset)[:1] * num_rows]
    batch = trainer._generate_and_score_completions(rows)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.01
    trainer.current_gradient_accumulation_steps = 1
    return trainer, batch


# On the CPU these run no operation that a profile would show; on CUDA each waits
READING = ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__", "__index__")


def readings(monkeypatch, compute_loss, trainer, batch) -> Counter:
    """How often Python reads a tensor in one loss."""
    counts = Counter()
    with monkeypatch.context() as patch:
        for name in READING:
            original = getattr(torch.Tensor, name)

            def counting(tensor, *args, _name=name, _original=original):
                counts[_name] += 1
                return _original(tensor, *args)

            patch.setattr(torch.Tensor, name, counting)
        compute_loss(trainer.model, batch)
    return counts


def operations(trainer, batch, compute_loss=None) -> Counter:
    """How often each operation runs in one loss with its backward pass."""
    compute_loss = compute_loss or trainer._compute_loss
    compute_loss(trainer.model, batch).backward()  # caches are filled
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        compute_loss(trainer.model, batch).backward()
    return Counter({event.key: event.count for event in profiler.key_averages() if event.key.startswith("aten::")})


def grpo_loss(trainer):
    """What TRL makes of the same batch, with one clip range and the outcome advantages."""

    def compute_loss(model, batch):
        theirs = {name: value for name, value in batch.items() if name not in ("turn_ids", "clip_scale")}
        trainer.importance_sampling_level = "token"
        try:
            return GRPOTrainer._compute_loss(trainer, model, theirs)
        finally:
            trainer.importance_sampling_level = "turn"

    return compute_loss


def test_no_wait_for_the_device(build, monkeypatch):
    trainer, batch = batch_of(build, 4, 3)
    read = readings(monkeypatch, trainer._compute_loss, trainer, batch)
    assert read["item"] > 0 and read == readings(monkeypatch, grpo_loss(trainer), trainer, batch)
    ours, theirs = operations(trainer, batch), operations(trainer, batch, grpo_loss(trainer))
    assert sum(theirs[name] for name in WAITING) > 0  # TRL's metrics read numbers: the profile sees such things
    assert {name: ours[name] for name in WAITING} == {name: theirs[name] for name in WAITING}
    assert (ours - theirs).total() > 0


def test_no_loop_over_rows_or_turns(build):
    """Whatever there is of both, the same operations beside TRL's."""
    extra = []
    for num_rows, num_turns in ((2, 1), (8, 1), (2, 6), (8, 6)):
        trainer, batch = batch_of(build, num_rows, num_turns)
        assert int(batch["turn_ids"].max()) == num_turns
        extra.append(operations(trainer, batch) - operations(trainer, batch, grpo_loss(trainer)))
    assert extra[0] and extra[0].total() < 60
    assert extra == extra[:1] * 4


class ProfiledStep(TrainerCallback):
    """Counts the operations of the third optimizer step, which uses the batch of the second again."""

    def __init__(self):
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.profile.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.profile.stop()

    def waits(self):
        counts = {event.key: event.count for event in self.profile.key_averages()}
        return {name: counts.get(name, 0) for name in WAITING}


def test_a_whole_step_waits_no_more_than_trls(build):
    """But once: whether there is anything to learn, and no broken number, is for the host to know."""

    def waits(**options):
        step = ProfiledStep()
        rollouts = [["<answer>no</answer><|im_end|>"], *[[ANSWER]] * 3]
        common = dict(max_steps=3, num_iterations=2, steps_per_generation=2, logging_steps=10, tools=None)
        build(rollouts, callbacks=[step], **common, **options).train()
        return step.waits()

    theirs = waits(trainer=GRPOTrainer, cls=GRPOConfig)
    assert theirs["aten::_local_scalar_dense"] > 0
    for skip_empty in (True, False):
        ours = waits(skip_empty_updates=skip_empty)
        assert {name: ours[name] - theirs[name] for name in WAITING if ours[name] != theirs[name]} == {
            "aten::_local_scalar_dense": 1,
            "aten::item": 1,
        }


@pytest.mark.parametrize("bf16", [False, True])
def test_types_are_stable(build, bf16):
    """Ratios and advantages are float32 under autocast: a clip range of 3e-3 lies below the resolution of bfloat16."""
    trainer, batch = batch_of(build, 4, 2, bf16=bf16)
    seen, original = {}, trainer.get_off_policy_mask
    trainer.off_policy_mask_threshold = 1e9

    def capture(**tensors):
        seen.update(tensors)
        return original(**tensors)

    trainer.get_off_policy_mask = capture
    with trainer.accelerator.autocast():
        loss = trainer._compute_loss(trainer.model, batch)
    types = {name: value.dtype for name, value in seen.items() if isinstance(value, torch.Tensor) and name != "mask"}
    assert set(types.values()) == {torch.float32} and len(types) == 3
    assert loss.dtype == batch["advantages"].dtype == batch["clip_scale"].dtype == torch.float32
