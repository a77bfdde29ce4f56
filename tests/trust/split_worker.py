"""Trains on the same eight rollouts, two optimizer steps, on however many processes it is launched with."""

import functools
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import TrainerCallback

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.records import read_turns
from conftest import GROUP, QUESTION, correct, search

COLLECTIVES = []
"""What this process called so far, by name."""


def heard(name):
    call = getattr(dist, name)

    @functools.wraps(call)
    def hear(*args, **options):
        COLLECTIVES.append(name)
        return call(*args, **options)

    return hear


for _name in (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast", "broadcast_object_list",
    "gather", "gather_object", "reduce", "reduce_scatter_tensor", "scatter",
):  # fmt: skip
    setattr(dist, _name, heard(_name))

# Two groups of four rollouts: 0 to 3 tool turns in one, none or one in the other. Of four processes one calls no tool
ROLLOUTS = [
    *GROUP,
    ["<answer>Lyon is it</answer><|im_end|>"],
    ["<answer>Paris</answer><|im_end|>"],
    ["<search>capital of France</search>", "<answer>Paris</answer><|im_end|>"],
    ["<search>Lyon</search>", "<answer>no</answer><|im_end|>"],
]
ROWS = [
    {"prompt": QUESTION, "answer": ["Paris"]},
    {"prompt": "Question: Which capital has France?", "answer": ["Paris"]},
]
PER_DEVICE = 2


def lengths(turns, **columns):
    return [[len(turn.ids) / 10 if k != 1 else None for k, turn in enumerate(own)] for own in turns]


LOSSES = {
    **{loss: {} for loss in ("grpo", "dapo", "dr_grpo", "bnpo")},
    "cispo": dict(epsilon_high=5.0),  # where it is a cap
    **{loss: dict(turn_clip_strength=0) for loss in ("sapo", "vespo")},  # which clip nothing
}
CREDIT = [
    "group",
    "generation",
    "turn",
    "information_gain",
    "normalized_gain",
    "advantage",
    "outcome_advantage",
    "clip_scale",
]
"""Columns of turn records: where a turn stands, and what it got."""
CASES = {
    **{f"a2tgpo, {loss}": dict(loss_type=loss, **options) for loss, options in LOSSES.items()},
    "grpo, luspo": dict(advantage_estimator="grpo", loss_type="luspo", importance_sampling_level="sequence"),
    "a2tgpo, ratios of tokens": dict(importance_sampling_level="token", epsilon=0.01, epsilon_high=0.01),
    "igpo": dict(advantage_estimator="igpo"),
    "gtpo": dict(advantage_estimator="gtpo"),
    "turn_ppo": dict(advantage_estimator="turn_ppo", critic_layers=0, critic_learning_rate=0.05),
    "trace": dict(advantage_estimator="trace"),
    "grpo": dict(advantage_estimator="grpo", scale_rewards="batch", epsilon=0.01),
}


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = model.named_parameters()
        self.steps.append({name.removeprefix("module."): p.grad.clone() for name, p in named if p.grad is not None})


def trained(folder: Path, processes: int, rank: int, case: str) -> dict:
    options = CASES[case]
    share = len(ROLLOUTS) // processes
    accumulation = share // PER_DEVICE
    tiny.Script(ROLLOUTS[rank * share : (rank + 1) * share]).install(Patch())
    args = A2TGPOConfig(
        output_dir=str(folder / f"{processes}-{case}"), num_generations=4, per_device_train_batch_size=PER_DEVICE,
        gradient_accumulation_steps=accumulation, steps_per_generation=accumulation, num_iterations=2, max_steps=2,
        max_completion_length=400, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0.0,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        shuffle_dataset=False, **options,
    )  # fmt: skip
    gradients = Gradients()
    trainer = A2TGPOTrainer(
        tiny.model(), correct, args, Dataset.from_list(ROWS), processing_class=tiny.tokenizer(), tools=[search],
        turn_reward_funcs=[lengths] if options.get("advantage_estimator") == "gtpo" else None, callbacks=[gradients],
    )  # fmt: skip
    before = len(COLLECTIVES)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {
        "gradients": gradients.steps,
        "collectives": COLLECTIVES[before:],
        "credit": read_turns(args.output_dir, CREDIT).to_pylist() if rank == 0 else None,
        "logs": logs,
        "weights": dict(trainer.accelerator.unwrap_model(trainer.model).state_dict()),
    }


class Patch:
    """Sets attributes for good: the process is only there for this."""

    setattr = staticmethod(setattr)


def main(folder: Path) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.set_num_threads(1)
    runs = {case: trained(folder, processes, rank, case) for case in CASES}
    torch.save(runs, folder / f"{processes}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
