"""The demo's trainer, and what is measured with it before and after training."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

from .. import A2TGPOConfig, A2TGPOTrainer
from ..data import load_atlas, split_by_entity, to_dataset
from ..integrations.checkpoints import last_checkpoint
from ..records.rows import turn_rows
from ..rewards import exact_match_reward
from ..rollout import Rollout
from ..search import BM25Search
from .model import load_model, load_tokenizer
from .report import gains_by_turn
from .warmup import PROMPT_TEMPLATE

KINDS = ("city_capital", "city_currency", "capital_currency")
"""Two hops, short prompts: every token costs time on a CPU."""

GROUP_SIZE = 8
PROMPTS_PER_BATCH = 4
ROLLOUTS_PER_UPDATE = 4
UPDATES_PER_BATCH = PROMPTS_PER_BATCH * GROUP_SIZE // ROLLOUTS_PER_UPDATE
EPSILON, EPSILON_HIGH = 0.03, 0.04
"""Ten times the paper's: a clip range goes with the step size, and LoRA's is larger."""


@dataclass(frozen=True)
class Task:
    """Questions about some countries to train on, questions about others to evaluate on, and the search tool."""

    train: list[dict]
    held_out: list[dict]
    search: BM25Search


def load_task() -> Task:
    """The embedded two-hop questions; which countries are held out is the same for every seed."""
    atlas = load_atlas()
    questions = [question for question in atlas.questions if question["kind"] in KINDS]
    return Task(*split_by_entity(questions), BM25Search(atlas.passages, top_k=1, show_titles=False))


def make_trainer(
    model_folder: Path,
    adapter_folder: Path,
    task: Task,
    output_folder: Path,
    rollout_batches: int,
    seed: int,
    use_cpu: bool = True,
    trainer_class: type[A2TGPOTrainer] = A2TGPOTrainer,
    **options,
) -> A2TGPOTrainer:
    """The trainer, with the adapter in `adapter_folder` as its policy; `options` of [`A2TGPOConfig`] are added."""
    args = A2TGPOConfig(
        output_dir=str(output_folder),
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=ROLLOUTS_PER_UPDATE,
        per_device_eval_batch_size=PROMPTS_PER_BATCH * GROUP_SIZE,
        steps_per_generation=UPDATES_PER_BATCH,  # all but the first update are off-policy, so that the clip can bind
        gradient_accumulation_steps=1,
        max_steps=rollout_batches * UPDATES_PER_BATCH,
        max_completion_length=112,
        max_tool_calling_iterations=3,
        tool_protocol="tags",
        answer_stop="",  # the warm start has taught to end with the end-of-sequence token
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        epsilon=EPSILON,
        epsilon_high=EPSILON_HIGH,
        gradient_checkpointing=False,
        bf16=False,  # the model is in bfloat16 already
        dataloader_pin_memory=False,
        use_cpu=use_cpu,
        save_steps=UPDATES_PER_BATCH,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        **options,
    )
    policy = PeftModel.from_pretrained(load_model(model_folder), adapter_folder, is_trainable=True)
    trainer = trainer_class(
        model=policy,
        reward_funcs=exact_match_reward,
        args=args,
        train_dataset=to_dataset(task.train, PROMPT_TEMPLATE),
        processing_class=load_tokenizer(model_folder),
        callbacks=[BatchProgress()],
        tools=[task.search.search],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: A2TGPOTrainer) -> None:
    """Train, from the last checkpoint if an earlier run was interrupted."""
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))


class BatchProgress(TrainerCallback):
    """Prints a line when the rollouts of a batch are in, and one when its updates are done."""

    def __init__(self):
        self.clip_shares = []
        self.start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % UPDATES_PER_BATCH == 0:
            self.clip_shares, self.start = [], time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            batch, batches = math.ceil(state.global_step / UPDATES_PER_BATCH), state.max_steps // UPDATES_PER_BATCH
            gains = ", ".join(f"{gain:+.2f}" for gain in gains_by_turn(logs))
            print(
                f"  rollout batch {batch}/{batches}: exact match {logs['reward']:.2f}, searches "
                f"{logs['turns/tool_mean']:.2f}, information gain by search {gains}",
                flush=True,
            )
        if "clip_ratio/region_mean" in logs:
            self.clip_shares.append(logs["clip_ratio/region_mean"])
            if state.global_step % UPDATES_PER_BATCH == 0:
                share = sum(self.clip_shares) / len(self.clip_shares)
                seconds = time.monotonic() - self.start
                print(f"    {UPDATES_PER_BATCH} updates, {share:.0%} of tokens clipped, {seconds:.0f} s", flush=True)


def evaluate(trainer: A2TGPOTrainer, task: Task, number: int) -> dict:
    """
    Held-out measurements, the same questions at every call.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy plays.
        task ([`Task`]): Its `held_out` questions are used.
        number (`int`): Questions.

    Returns:
        `dict`: `"greedy"` and `"sampled"`, each with `exact_match`, `searches` and `gains` (by turn); and `"rollouts"`,
        a sampled group of one question, each as its turn records.
    """
    torch.manual_seed(trainer.args.seed)
    questions = random.Random(0).sample(task.held_out, number)
    rows = list(to_dataset(questions, PROMPT_TEMPLATE))
    result = {}
    for mode in ("greedy", "sampled"):
        start = time.monotonic()
        result[mode] = summarize(trainer.play(rows, greedy=mode == "greedy"))
        print(
            f"  {number} held-out questions, {mode}: exact match {result[mode]['exact_match']:.2f}, searches "
            f"{result[mode]['searches']:.2f} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    group = trainer.play(rows[:1], num_generations=GROUP_SIZE)
    decode = trainer._tokenizer.batch_decode
    return result | {"rollouts": [turn_rows([rollout], i, GROUP_SIZE, decode) for i, rollout in enumerate(group)]}


def summarize(played: Sequence[Rollout]) -> dict:
    """Mean exact match, searches and information gain by turn of played rollouts."""
    by_turn = zip_longest(*(rollout.turns for rollout in played))
    columns = [[turn.credit.get("information_gain") for turn in turns if turn is not None] for turns in by_turn]
    gains = [[gain for gain in column if gain is not None] for column in columns]
    return {
        "exact_match": _mean([rollout.rewards["exact_match_reward"] for rollout in played]),
        "searches": _mean([sum(turn.observation is not None for turn in rollout.turns) for rollout in played]),
        "gains": [_mean(column) for column in gains if column],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
