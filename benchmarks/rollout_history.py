"""
Claim: a rollout that keeps keys and values between its turns is written at least 1.5 times as fast as by TRL's loop, from
the same tokens to the same tokens, in no more memory.

16 rollouts of the demo model on the CPU, greedy, float32: six tool turns, each of up to 50 tokens that the model writes and
about 100 that an instant tool returns, and an answer. What the model writes is taken for a call until it had six turns.
TRL's loop and ours take turns; the tokens must be equal. Memory is the peak of the process during the rollout above what
it held before.

    python benchmarks/rollout_history.py
    python benchmarks/rollout_history.py --device cuda --bf16 --random --tool-turns 8

With half precision, and on a GPU, batches of another form may round to other tokens: then the share of rollouts with the
same tokens is written instead. Writes the figures as JSON beside itself.
"""

import argparse
import random
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
import trl.trainer.grpo_trainer
from datasets import Dataset
from measuring import demo_shape, make_parser, peak_megabytes, report, wait
from scripted import atlas_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template

import a2tgpo_trl.rollout.protocols.chat
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.demo.model import load_model, load_tokenizer, prepare_model
from a2tgpo_trl.integrations.replaced import replaced

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
            max_completion_length=6000,
            generation_kwargs={"do_sample": False},
            use_cpu=model.device.type == "cpu",
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

    def run():
        with suppress(Done):
            trainer._generate_and_score_completions([dict(row) for row in rows])

    def keep(prompts):
        start = time.perf_counter()
        outputs["tokens"] = generate(prompts)[:3]
        wait()
        outputs["seconds"] = time.perf_counter() - start
        raise Done

    trainer._generate = keep
    try:
        outputs["megabytes"] = peak_megabytes(run)
    finally:
        trainer._generate = generate
    return outputs


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=3, threads=torch.get_num_threads())
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--random", action="store_true", help="a random model of its shape, and a tokenizer made here")
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--tool-turns", type=int, default=6)
    parser.add_argument("--turn-tokens", type=int, default=50, help="most tokens that the model writes in a turn")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    if options.random:
        model, tokenizer = demo_shape(toy=options.toy), atlas_tokenizer()
    else:
        model, tokenizer = load_model(prepare_model(options.model)), load_tokenizer(options.model)
    model = model.to(options.device, torch.bfloat16 if options.bf16 else torch.float32)
    tokenizer.chat_template = qwen2_5_chat_template
    questions = random.Random(0).sample(ATLAS.questions, options.rollouts)
    rows = [{"prompt": [{"role": "user", "content": q["question"]}], "answer": "x"} for q in questions]
    arguments = (model, tokenizer, rows, options.turn_tokens)
    trainers = {
        "trl": make_trainer(GRPOTrainer, GRPOConfig, *arguments),
        "ours": make_trainer(A2TGPOTrainer, A2TGPOConfig, *arguments, advantage_estimator="grpo"),
    }
    runs = {name: [] for name in trainers}
    parse = {"parse_response": call_until(options.tool_turns)}
    with replaced(trl.trainer.grpo_trainer, **parse), replaced(a2tgpo_trl.rollout.protocols.chat, **parse):
        if options.device == "cuda":  # the first run loads kernels, and does not count
            for trainer in trainers.values():
                rolled_out(trainer, rows)
        for number in range(options.rounds):
            for name, trainer in trainers.items():
                runs[name].append(rolled_out(trainer, rows))
                run = runs[name][-1]
                print(f"round {number}  {name:5} {run['seconds']:7.1f} s  {run['megabytes']:6.0f} MB", flush=True)

    pairs = zip(*(runs[name][-1]["tokens"][1] for name in ("trl", "ours")), strict=True)
    same = statistics.mean(theirs == ours for theirs, ours in pairs)
    prompt_ids, completion_ids, masks = runs["trl"][0]["tokens"]
    metrics = trainers["ours"]._metrics["train" if model.training else "eval"]
    return {
        "tokens_per_rollout": {
            "prompt": statistics.mean(map(len, prompt_ids)),
            "completion": statistics.mean(map(len, completion_ids)),
            "written by the model": statistics.mean(map(sum, masks)),
        },
        "share_with_the_same_tokens": same,
        "seconds": {name: [run["seconds"] for run in runs[name]] for name in runs},
        "megabytes": {name: [run["megabytes"] for run in runs[name]] for name in runs},
        "trl_over_ours": ratio(runs, "seconds", "trl", "ours"),
        "memory_ours_over_trl": ratio(runs, "megabytes", "ours", "trl"),
        "tokens_fed_over_final_length": round(metrics["rollout/tokens_fed_ratio"][-1], 3),
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    figures = measure(options)
    if options.device == "cpu" and not options.bf16:
        assert figures["share_with_the_same_tokens"] == 1, "not the same tokens"
    report(__file__, "a rollout whose history is read once, against TRL's loop", options, figures)


def ratio(runs: dict, field: str, above: str, below: str) -> float:
    return round(statistics.median(a[field] / b[field] for a, b in zip(runs[above], runs[below], strict=True)), 2)


if __name__ == "__main__":
    main()
