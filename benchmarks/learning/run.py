"""One run: a method with its options on a task with a seed → what was measured, as one dictionary."""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from controls import CONTROLS
from datasets import Dataset
from task import TOKENS_OF_AN_ANSWER, Task
from transformers import AutoModelForCausalLM, PrinterCallback, ProgressCallback, TrainerCallback
from warm_start import warm_start

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import Estimator, estimator_of
from a2tgpo_trl.records.metrics import credit_metrics
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.rollout import Rollout

WORLDS = 3
"""Pairs of a world and a warm start; a seed takes the one of its remainder."""


def world_of(seed: int, first_world: int = 1) -> int:
    """The world, and warm start, of a seed."""
    return first_world + seed % WORLDS


CLIP_RANGES = {"token": (0.2, 0.2), "turn": (0.05, 0.067), "turn_product": (0.2, 0.2)}
EVALUATION_SEED = 10**6


@dataclass(frozen=True)
class Size:
    """
    How much a run rolls out and learns.

    Attributes:
        prompts (`int`): In a batch.
        group (`int`): Rollouts of each.
        updates (`int`): Of a batch.
        batches (`int`): Of the run.
        every (`int`): Batches between evaluations.
        questions (`int`): Held-out questions of an evaluation, each played once.
    """

    prompts: int = 8
    group: int = 8
    updates: int = 8
    batches: int = 25
    every: int = 5
    questions: int = 128


@dataclass(frozen=True)
class Run:
    """
    One run.

    Attributes:
        task ([`Task`]): What is asked.
        size ([`Size`]): How much is rolled out.
        method (`str`): The option `advantage_estimator`, or one of `controls.py`.
        seed (`int`): Of the rollouts, the questions, and of which warm start.
        options (`dict`): Of [`A2TGPOConfig`].
        first_world (`int`): The first of the worlds that seeds take.
    """

    task: Task
    size: Size
    method: str
    seed: int
    options: dict = field(default_factory=dict)
    first_world: int = 1

    def execute(self) -> dict:
        """Train, and return what was measured."""
        start, cpu = time.monotonic(), time.process_time()
        world = world_of(self.seed, self.first_world)
        model = AutoModelForCausalLM.from_pretrained(warm_start(self.task, world), dtype=torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            rows = self.task.rows(world, 0, self.size.questions, held_out=True)
            measured = train_and_measure(self._trainer(model, world, folder), rows, self.size, start, cpu)
        return {"world": world, "warm_start": warm_start(self.task, world).name} | measured

    def _trainer(self, model, world: int, folder: str) -> "MeasuredTrainer":
        size, task = self.size, self.task
        trainer = MeasuredTrainer(
            model=model,
            reward_funcs=[task.make_outcome(self.seed), exact_match_reward],
            args=A2TGPOConfig(folder, **self._options()),
            train_dataset=Dataset.from_list(task.rows(world, self.seed, size.prompts * size.batches, held_out=False)),
            processing_class=task.make_tokenizer(),
            tools=[task.make_search(world, self.seed)],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    def _options(self) -> dict:
        size, hops = self.size, self.task.hops
        method = CONTROLS.get(self.method, self.method)
        level = self.options.get("importance_sampling_level") or (
            Estimator.defaults | estimator_of(method).defaults
        ).get("importance_sampling_level")
        low, high = CLIP_RANGES[level]
        return {
            "advantage_estimator": method,
            "importance_sampling_level": level,
            "epsilon": low,
            "epsilon_high": high,
            "loss_type": "grpo",
            "skip_empty_updates": True,
            "reward_weights": [1.0, 0.0],
            "num_generations": size.group,
            "per_device_train_batch_size": size.prompts * size.group // size.updates,
            "per_device_eval_batch_size": size.questions,
            "steps_per_generation": size.updates,
            "gradient_accumulation_steps": 1,
            "max_steps": size.updates * size.batches,
            "max_completion_length": self.task.tokens_of_a_turn * (hops + 3),
            "max_tool_calling_iterations": hops + 2,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "constant",
            "tool_concurrency": 1,  # with lockstep: noise is drawn in the same order
            "lockstep": True,
            "turn_records": False,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "logging_steps": size.updates,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": self.seed,
        } | self.options


class MeasuredTrainer(A2TGPOTrainer):
    """Keeps the diagnostics of each batch that it trains on."""

    tokens_of_an_answer: float = TOKENS_OF_AN_ANSWER

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches: list[dict] = []

    def _give_credit(self, batch):
        super()._give_credit(batch)
        if batch.training:
            self.batches.append(diagnose(batch, self.tokens_of_an_answer))

    def log(self, logs, start_time=None):
        metrics = self._metrics["train"]  # TRL empties them here
        for name, ours in (("entropy", "entropy"), ("clip_ratio/region_mean", "clipped")):
            if self.batches and metrics.get(name):  # reading would make the key
                self.batches[-1][ours] = statistics.fmean(metrics[name])
        super().log(logs, start_time)


LOGGED = {
    "turns": "turns/mean",
    "turn_part_mixed": "advantages/turn_part_abs_mean_mixed",
    "turn_part_dead": "advantages/turn_part_abs_mean_equal",
    "belief_at_prompt": "belief/first",
    "gain_outcome_correlation": "information_gain/outcome_correlation",
}
"""Diagnostics → the metrics of the trainer that they are; see `docs/metrics.md`."""


def diagnose(batch, tokens_of_an_answer: float) -> dict:
    """Of a batch with its credit: what the reward and the credit of its groups are like; `None` where there is nothing to measure."""
    metrics = credit_metrics(batch.turns, batch.credit)
    found = {name: metrics[metric] for name, metric in LOGGED.items() if metric in metrics}
    contexts = {context for rollout in batch.rollouts for context in _probed_contexts(rollout)}
    return {name: None if math.isnan(value) else value for name, value in found.items()} | {
        "reward": batch.turns.rewards.mean().item(),
        "exact_match": batch.rewards[:, -1].mean().item(),
        "dead_groups": 1 - batch.turns.mixed.float().mean().item(),
        "generated_tokens": sum(len(turn.ids) for rollout in batch.rollouts for turn in rollout.written_turns),
        "scored_tokens": tokens_of_an_answer * len(contexts) if "beliefs" in batch.turns.signals else 0,
    }


def _probed_contexts(rollout: Rollout) -> Iterator[tuple[int, ...]]:
    """What beliefs are measured after: the prompt, and each observation. Equal ones are probed once."""
    context = tuple(rollout.prompt_ids)
    yield context
    for turn in rollout.turns:
        context += (*turn.ids, *turn.observation_ids)
        if turn.observation_ids:
            yield context


def played_exactly(played: list[Rollout]) -> float:
    """The share of rollouts whose answer is exactly right."""
    return statistics.fmean(rollout.rewards["exact_match_reward"] for rollout in played)


class Curve(TrainerCallback):
    """Sampled exact match on held-out questions before training and every few batches."""

    def __init__(self, trainer: A2TGPOTrainer, rows: list[dict], size: Size):
        self.trainer, self.rows, self.size = trainer, rows, size
        self.points: list[dict] = []
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._measure(0)

    def on_step_end(self, args, state, control, **kwargs):
        batch, rest = divmod(state.global_step, self.size.updates)
        if not rest and batch % self.size.every == 0:
            self._measure(batch)

    def _measure(self, batch: int) -> None:
        start = time.monotonic()
        with torch.random.fork_rng():  # the training's own random numbers do not depend on evaluations
            torch.manual_seed(EVALUATION_SEED + batch)
            played = self.trainer.play(self.rows)
        self.points.append(
            {
                "batch": batch,
                "exact_match": played_exactly(played),
                "turns": statistics.fmean(len(rollout.turns) for rollout in played),
            }
        )
        self.seconds += time.monotonic() - start


def train_and_measure(trainer: MeasuredTrainer, rows: list[dict], size: Size, start: float, cpu: float) -> dict:
    """
    Train, with evaluations on the way and greedy answers at the end.

    Args:
        trainer ([`MeasuredTrainer`]): Not trained yet.
        rows (`list[dict]`): Held-out questions.
        size ([`Size`]): When to evaluate.
        start, cpu (`float`): `time.monotonic()` and `time.process_time()` when the run began.

    Returns:
        `dict`: what was measured; seconds do not have the greedy answers.
    """
    curve = Curve(trainer, rows, size)
    trainer.add_callback(curve)
    trainer.train()
    passed, processor = time.monotonic() - start, time.process_time() - cpu
    seconds = {"all": passed, "training": passed - curve.seconds, "evaluation": curve.seconds, "processor": processor}
    return {
        "curve": curve.points,
        "greedy_exact_match": played_exactly(trainer.play(rows, greedy=True)),
        "batches": trainer.batches,
        "optimizer_steps": trainer.state.global_step,
        "empty_updates": trainer.skipped_updates.num_empty,
        "seconds": seconds,
    }
