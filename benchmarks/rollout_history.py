"""
Claim: a rollout that keeps keys and values between its turns is written at least 1.5 times as fast as by TRL's loop, from
the same tokens to the same tokens, in no more memory.

16 rollouts of the demo model on the CPU, greedy, float32: six tool turns, each of up to 50 tokens that the model writes and
about 100 that an instant tool returns, and an answer. What the model writes is taken for a call until it had six turns.
TRL's loop and ours take turns; the tokens must be equal. Memory is the peak of the process during the rollout above what
it held before.

    python benchmarks/rollout_history.py

Writes the figures as JSON beside itself.
"""

import argparse
import ctypes
import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import trl.trainer.grpo_trainer
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template

import a2tgpo_trl.rollout.chat
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.demo.model import load_model, load_tokenizer, prepare_model

ATLAS = load_atlas()


def look(key: int) -> str:
    """
    Look something up.

    Args:
        key: Where to look.
    """
    return " ".join(passage["text"] for passage in random.Random(key).sample(ATLAS.passages, 5))


def call_until(num_tool_turns: int):
    """A parser that takes every turn for a call, whatever the model wrote, until there were as many."""

    def parse(tokenizer, ids, prefix=None, tools=None):
        message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        # The prompt has three messages, each tool turn adds a result and the header of the next turn
        if (prefix.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) - 3) // 2 < num_tool_turns:
            function = {"name": "look", "arguments": {"key": sum(ids)}}
            message["tool_calls"] = [{"type": "function", "function": function}]
        return message

    return parse


def make_trainer(trainer_class, config_class, model, tokenizer, rows: list[dict], turn_tokens: int, **options):
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            per_device_train_batch_size=len(rows),
            num_generations=2,
            max_completion_length=1800,
            generation_kwargs={"do_sample": False},
            use_cpu=True,
            bf16=False,
            report_to=[],
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        tools=[look],
    )
    trainer.generation_config.max_new_tokens = turn_tokens
    return trainer


def rolled_out(trainer, rows: list[dict]) -> dict:
    """Seconds, MB at the peak above those before, and what came out; the scoring after it is left out."""
    outputs, generate = {}, trainer._generate

    class Done(Exception):
        pass

    def keep(prompts):
        start = time.perf_counter()
        outputs["tokens"] = generate(prompts)[:3]
        outputs["seconds"] = time.perf_counter() - start
        raise Done

    trainer._generate = keep
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = memory("VmRSS")
    try:
        trainer._generate_and_score_completions([dict(row) for row in rows])
    except Done:
        outputs["megabytes"] = memory("VmHWM") - before
    finally:
        trainer._generate = generate
    return outputs


def memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--tool-turns", type=int, default=6)
    parser.add_argument("--turn-tokens", type=int, default=50, help="most tokens that the model writes in a turn")
    options = parser.parse_args()

    model = load_model(prepare_model(options.model)).float()
    tokenizer = load_tokenizer(options.model)
    tokenizer.chat_template = qwen2_5_chat_template
    questions = random.Random(0).sample(ATLAS.questions, options.rollouts)
    rows = [{"prompt": [{"role": "user", "content": q["question"]}], "answer": "x"} for q in questions]
    parse = call_until(options.tool_turns)
    trl.trainer.grpo_trainer.parse_response = a2tgpo_trl.rollout.chat.parse_response = parse

    arguments = (model, tokenizer, rows, options.turn_tokens)
    trainers = {
        "trl": make_trainer(GRPOTrainer, GRPOConfig, *arguments),
        "ours": make_trainer(A2TGPOTrainer, A2TGPOConfig, *arguments, advantage_estimator="grpo"),
    }
    runs = {name: [] for name in trainers}
    for number in range(options.rounds):
        for name, trainer in trainers.items():
            runs[name].append(rolled_out(trainer, rows))
            run = runs[name][-1]
            print(f"round {number}  {name:5} {run['seconds']:7.1f} s  {run['megabytes']:6.0f} MB", flush=True)
        assert runs["trl"][-1]["tokens"] == runs["ours"][-1]["tokens"], "not the same tokens"

    prompt_ids, completion_ids, masks = runs["trl"][0]["tokens"]
    metrics = trainers["ours"]._metrics["train" if model.training else "eval"]
    report = {
        "claim": "a rollout whose history is read once, against TRL's loop",
        "options": {name: str(value) for name, value in vars(options).items() if name != "model"},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tokens_per_rollout": {
            "prompt": statistics.mean(map(len, prompt_ids)),
            "completion": statistics.mean(map(len, completion_ids)),
            "written by the model": statistics.mean(map(sum, masks)),
        },
        "same_tokens": True,
        "seconds": {name: [run["seconds"] for run in runs[name]] for name in runs},
        "megabytes": {name: [run["megabytes"] for run in runs[name]] for name in runs},
        "trl_over_ours": ratio(runs, "seconds", "trl", "ours"),
        "memory_ours_over_trl": ratio(runs, "megabytes", "ours", "trl"),
        "tokens_fed_over_final_length": round(metrics["rollout/tokens_fed_ratio"][-1], 3),
    }
    print(json.dumps({name: report[name] for name in [*list(report)[-3:], "tokens_per_rollout"]}, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


def ratio(runs: dict, field: str, above: str, below: str) -> float:
    return round(statistics.median(a[field] / b[field] for a, b in zip(runs[above], runs[below], strict=True)), 2)


if __name__ == "__main__":
    main()
