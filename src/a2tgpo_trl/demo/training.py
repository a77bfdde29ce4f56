"""The demo's trainer, and what is measured with it before, during and after training."""

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
from .warmup import ANSWER_TEMPLATE, PROMPT_TEMPLATE

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
    """The trainer, with the adapter in `adapter_folder` as its policy; `options` of [`A2TGPOConfig`] replace the demo's."""
    chosen = dict(
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
        answer_template=ANSWER_TEMPLATE,
        answer_stop="",  # the warm start has taught to end with the end-of-sequence token
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        epsilon=EPSILON,
        epsilon_high=EPSILON_HIGH,
        gradient_checkpointing=False,
        bf16=False,
        dataloader_pin_memory=False,
        use_cpu=use_cpu,
        save_steps=UPDATES_PER_BATCH,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    args = A2TGPOConfig(**chosen | options)
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


def train(trainer: A2TGPOTrainer, held_out: Sequence[dict] = ()) -> None:
    """
    Train, from the last checkpoint if an earlier run was interrupted.

    Args:
        trainer ([`A2TGPOTrainer`]): The trainer.
        held_out (`Sequence[dict]`, *optional*): Rows to answer along the way, see [`HeldOutPoints`]; none by default.
    """
    if held_out:
        trainer.add_callback(HeldOutPoints(trainer, held_out))
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


class HeldOutPoints(TrainerCallback):
    """
    Answers held-out questions greedily when a third and two thirds of the batches are done, and adds what it measures to the
    trainer's log, which checkpoints keep.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy plays.
        rows (`Sequence[dict]`): The questions.
    """

    PARTS = 3
    """However long the training, the points in between cost `PARTS - 1` times the questions."""

    def __init__(self, trainer: A2TGPOTrainer, rows: Sequence[dict]):
        self.trainer, self.rows = trainer, list(rows)

    def on_log(self, args, state, control, logs=None, **kwargs):  # after the batch's own lines, before its checkpoint
        if "loss" in logs and state.global_step in self._steps(state.max_steps // UPDATES_PER_BATCH):
            measured = measure(self.trainer, self.rows, "greedy")
            state.log_history.append(
                {
                    "step": state.global_step,
                    "eval_reward": measured["exact_match"],
                    "eval_turns/tool_mean": measured["searches"],
                }
            )

    def _steps(self, batches: int) -> set[int]:
        ends = {round(batches * part / self.PARTS) for part in range(1, self.PARTS)} - {0, batches}
        return {end * UPDATES_PER_BATCH for end in ends}


def held_out_rows(task: Task, number: int) -> list[dict]:
    """So many held-out questions, the same at every call."""
    return list(to_dataset(random.Random(0).sample(task.held_out, number), PROMPT_TEMPLATE))


def measure(trainer: A2TGPOTrainer, rows: Sequence[dict], mode: str, samples: int = 1) -> dict:
    """What [`summarize`] says of so many answers to each of these rows, `"greedy"` or `"sampled"`; prints a line."""
    start = time.monotonic()
    measured = summarize(trainer.play(rows, greedy=mode == "greedy", num_generations=samples))
    times = f" {samples} times" if samples > 1 else ""
    print(
        f"  {len(rows)} held-out questions, {mode}{times}: exact match {measured['exact_match']:.2f}, searches "
        f"{measured['searches']:.2f} ({time.monotonic() - start:.0f} s)",
        flush=True,
    )
    return measured


def evaluate(trainer: A2TGPOTrainer, task: Task, number: int, samples: int = 1) -> dict:
    """
    Held-out measurements, the same questions at every call.

    Args:
        trainer ([`A2TGPOTrainer`]): Whose policy plays.
        task ([`Task`]): Its `held_out` questions are used.
        number (`int`): Questions.
        samples (`int`, *optional*, defaults to 1): Sampled answers to each of them, beside the greedy one.

    Returns:
        `dict`: `"greedy"` and `"sampled"`, each with `exact_match`, `searches` and `gains` (by turn); and `"rollouts"`,
        a sampled group of one question, each as its turn records.
    """
    torch.manual_seed(trainer.args.seed)
    rows = held_out_rows(task, number)
    result = {"greedy": measure(trainer, rows, "greedy"), "sampled": measure(trainer, rows, "sampled", samples)}
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
