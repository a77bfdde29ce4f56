"""300 optimizer steps of a toy: memory, open files and threads stay where they were."""

import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import TrainerCallback

import tiny
from a2tgpo_trl.records import read_turns
from conftest import ANSWER_ONLY, GROUP, QUESTION, search

STEPS, EVERY, WARM = 300, 10, 10  # optimizer steps, of which each tenth is measured, after ten measurements
PAGE = os.sysconf("SC_PAGE_SIZE")
BYTES_PER_STEP = 20_000
"""A generation batch that is kept for good is more than ten times as much: measured by [`test_a_leak_would_be_seen`]."""


class Watch(TrainerCallback):
    """Counts now and then what a long run must not gather."""

    def __init__(self):
        self.memory, self.files, self.threads = [], [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % EVERY:
            return
        gc.collect()
        self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(threading.active_count())

    @property
    def slope(self):
        """Bytes of resident memory that a step adds, once everything was used; the median over pairs (Theil-Sen)."""
        steps, memory = EVERY * np.arange(len(self.memory))[WARM:], np.array(self.memory)[WARM:]
        first, second = np.triu_indices(len(steps), 1)
        return float(np.median((memory[second] - memory[first]) / (steps[second] - steps[first])))


def slow_search(query: str) -> str:
    """
    Look something up, on a thread of its own for a while.

    Args:
        query: What to look for.

    Returns:
        A passage.
    """
    time.sleep(0.002)
    if query == "more":
        raise ValueError("nothing more")
    return search(query)


def soaked(build, rollouts, callbacks, **options):
    watch = Watch()
    rows = [{"prompt": f"{QUESTION} {i}", "answer": ["Paris", "Lutetia"]} for i in range(2400)]
    trainer = build(
        rollouts, dataset=Dataset.from_list(rows), callbacks=[watch, *callbacks], max_steps=STEPS, logging_steps=10,
        turn_records_max_mb=1, save_strategy="steps", save_steps=60, save_total_limit=1, **options,
    )  # fmt: skip
    trainer.train()
    return trainer, watch


SCRIPTED = [[text.replace("search>", "slow_search>") for text in rollout] for rollout in GROUP]


@pytest.mark.parametrize(
    ("rollouts", "options"),
    [
        (SCRIPTED, dict(tools=[slow_search])),
        (SCRIPTED, dict(tools=[slow_search], advantage_estimator="turn_ppo")),
        (
            None,
            dict(tools=[slow_search], max_completion_length=24),
        ),  # the model itself writes, and keeps keys and values
    ],
    ids=["beliefs", "critic", "sampled"],
)
def test_nothing_grows(build, rollouts, options, record_property):
    trainer, watch = soaked(build, rollouts, [], **options)
    assert trainer.state.global_step == STEPS == EVERY * len(watch.memory)
    record_property("bytes_per_step", round(watch.slope))
    assert watch.slope < BYTES_PER_STEP
    assert max(watch.files[WARM:]) <= max(watch.files[:WARM]) + 2
    assert max(watch.threads[WARM:]) <= max(watch.threads[:WARM])
    assert read_turns(trainer.args.output_dir).num_rows > 0


class Leak(TrainerCallback):
    def __init__(self):
        self.kept = []

    def on_step_end(self, *args, **kwargs):
        self.kept.append(bytearray(os.urandom(200_000)))


def test_a_leak_would_be_seen(build):
    _, watch = soaked(build, ANSWER_ONLY, [Leak()])
    assert watch.slope > 5 * BYTES_PER_STEP
    assert tiny.model()  # the package is the one under test
