"""
Claim: a training step takes no longer, and no more memory, than `GRPOTrainer`'s on the same rollouts.

The demo's model, adapter and settings: a generation batch of 32 rollouts (4 questions, 8 each), then eight updates of four
rollouts, bfloat16, LoRA. Both trainers get the same rollouts from the same `rollout_func`, traces of one and two searches as
the demo's warm start has them, so that generation, which would hide a difference, takes no time. One round is a whole
`train()` of eight steps: scoring, old log-probabilities, beliefs, rewards, updates. Memory is the peak of the process during
a round above what it held before.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --device cuda --random

Writes the figures as JSON beside itself.
"""

import argparse
import random
import tempfile
from collections.abc import Callable

import torch
from datasets import Dataset
from measuring import add_demo_model, demo_shape, in_turn, make_parser, peak_megabytes, ratio, report
from peft import LoraConfig
from scripted import atlas_tokenizer
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.demo.model import load_model, load_tokenizer, prepare_model
from a2tgpo_trl.demo.training import GROUP_SIZE, PROMPTS_PER_BATCH, ROLLOUTS_PER_UPDATE, UPDATES_PER_BATCH, load_task
from a2tgpo_trl.demo.warmup import PROMPT_TEMPLATE, tokenize_trace, trace_segments
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.rollout import TagProtocol


class Rollouts:
    """A `rollout_func`: for each question lazy and full traces in turn, the queries of some of them in other words."""

    def __init__(self, tokenizer, task):
        self.tokenizer = tokenizer
        self.task = task
        self.protocol = TagProtocol(tokenizer, [task.search.search])
        self.by_prompt = {PROMPT_TEMPLATE.format(**question): question for question in task.train}

    def __call__(self, prompts: list[str], trainer) -> dict:
        output = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
        for i, prompt in enumerate(prompts):
            question = self.by_prompt[prompt]
            if i % 4 == 3:
                question = {**question, "supports": [f"the {support}" for support in question["supports"]]}
            segments = trace_segments(question, self.task.search.search, lazy=i % 2 == 0)
            trace = tokenize_trace(prompt, segments, self.tokenizer, self.protocol)
            start = len(self.tokenizer(prompt)["input_ids"])
            output["prompt_ids"].append(trace["input_ids"][:start])
            output["completion_ids"].append(trace["input_ids"][start:])
            output["logprobs"].append([0.0] * (len(trace["input_ids"]) - start))
            output["env_mask"].append([int(label != -100) for label in trace["labels"][start:]])
        return output


def demo_rollouts(tokenizer) -> tuple[list[dict], Rollouts]:
    """Four of the demo's questions, and what is rolled out for them."""
    task = load_task()
    questions = random.Random(0).sample(task.train, PROMPTS_PER_BATCH)
    rows = [{"prompt": PROMPT_TEMPLATE.format(**question), "answer": question["answer"]} for question in questions]
    return rows, Rollouts(tokenizer, task)


def make_trainer(trainer_class, config_class, model, rollouts: Rollouts, rows: list[dict]):
    trainer = trainer_class(
        model=model,
        reward_funcs=exact_match_reward,
        args=config_class(
            tempfile.mkdtemp(),
            num_generations=GROUP_SIZE,
            per_device_train_batch_size=ROLLOUTS_PER_UPDATE,
            steps_per_generation=UPDATES_PER_BATCH,
            gradient_accumulation_steps=1,
            max_steps=UPDATES_PER_BATCH,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=model.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=rollouts.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        rollout_func=rollouts,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return add_demo_model(make_parser(__doc__, rounds=4)).parse_args(arguments)


def demo_setting(options: argparse.Namespace) -> tuple[Callable, list[dict], Rollouts]:
    """A function that makes the model that options ask for, questions, and what is rolled out for them."""
    folder = None if options.random else prepare_model(options.model)
    rows, rollouts = demo_rollouts(load_tokenizer(folder) if folder else atlas_tokenizer())

    def model():
        return (load_model(folder) if folder else demo_shape(toy=options.toy)).to(options.device, torch.bfloat16)

    return model, rows, rollouts


def measure(options: argparse.Namespace) -> dict:
    model, rows, rollouts = demo_setting(options)
    trainers = {
        "trl": make_trainer(GRPOTrainer, GRPOConfig, model(), rollouts, rows),
        "ours": make_trainer(A2TGPOTrainer, A2TGPOConfig, model(), rollouts, rows),
    }
    lengths = [
        len(ids)
        for ids in rollouts([row["prompt"] for row in rows for _ in range(GROUP_SIZE)], None)["completion_ids"]
    ]
    methods = {name: trainer.train for name, trainer in trainers.items()}
    seconds = in_turn(methods, options.rounds)
    logs = {name: trainer.state.log_history for name, trainer in trainers.items()}
    assert logs["ours"][0]["turns/tool_mean"] == 1.5, "the rollouts are not what they are meant to be"
    assert logs["ours"][0]["reward"] == logs["trl"][0]["reward"]
    return {
        "ours_over_trl": ratio(seconds, "ours", "trl"),
        "completion_tokens": {"mean": sum(lengths) / len(lengths), "max": max(lengths)},
        "megabytes": {name: peak_megabytes(run) for name, run in methods.items()},
        "seconds": seconds,
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    report(__file__, "a step on the same rollouts, against GRPOTrainer's", options, measure(options))


if __name__ == "__main__":
    main()
