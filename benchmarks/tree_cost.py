"""
How many times the generated tokens and the seconds of a leaf of a tree a rollout costs that starts from the prompt.

Trees of 10 chains and two rounds of 6 turns against 22 chains, for each of a few prompts, sampled from the demo's model on the CPU in float32: six
tool turns, each of up to 50 tokens that the model writes and about 100 that an instant tool returns, and an answer. What the model
writes is taken for a call until it had six turns. Both take turns; a round's seed is the same for both.

    python benchmarks/tree_cost.py
    python benchmarks/tree_cost.py --choice random --prompts 4
    python benchmarks/tree_cost.py --random --toy --rounds 1

Rollouts of a tree are played in three rounds, one after the other, in smaller batches than all chains together: seconds
gain less than tokens where a batch costs little more than a row. Writes the figures as JSON beside itself.
"""

import argparse
import random
import statistics
import tempfile
import time
from contextlib import suppress

import torch
import trl.trainer.grpo_trainer
from datasets import Dataset
from measuring import add_demo_model, demo_shape, make_parser, report, wait
from rollout_history import ATLAS, call_until, look
from scripted import atlas_tokenizer
from trl.chat_template_utils import qwen2_5_chat_template

import a2tgpo_trl.rollout.protocols.chat
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.demo.model import load_model, load_tokenizer, prepare_model
from a2tgpo_trl.integrations.replaced import replaced

LEAVES = 22
TREE = {"tree_chains": 10, "tree_expansions": 6}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = add_demo_model(make_parser(__doc__, rounds=4, threads=torch.get_num_threads()))
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tool-turns", type=int, default=6)
    parser.add_argument("--turn-tokens", type=int, default=50, help="most tokens that the model writes in a turn")
    parser.add_argument("--choice", choices=("surprisal", "random"), default="surprisal", help="of the turns")
    return parser.parse_args(arguments)


def make_trainer(model, tokenizer, rows: list[dict], options: argparse.Namespace, **tree) -> A2TGPOTrainer:
    trainer = A2TGPOTrainer(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=A2TGPOConfig(
            tempfile.mkdtemp(),
            advantage_estimator="grpo",
            num_generations=LEAVES,
            per_device_train_batch_size=LEAVES * options.prompts,
            max_completion_length=6000,
            max_turn_tokens=options.turn_tokens,
            use_cpu=options.device == "cpu",
            bf16=False,
            report_to=[],
            **tree,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        tools=[look],
    )
    trainer.model.train()  # trees are for training
    return trainer


def rolled_out(trainer: A2TGPOTrainer, rows: list[dict], seed: int) -> dict[str, float]:
    """Seconds and generated tokens per leaf, and what the trees are like; the scoring after it is left out."""
    figures, generate = {}, trainer._generate

    class Done(Exception):
        pass

    def keep(prompts):
        start = time.perf_counter()
        generate(prompts)
        wait()
        figures["seconds"] = (time.perf_counter() - start) / len(prompts)
        raise Done

    torch.manual_seed(seed)
    with replaced(trainer, _generate=keep), suppress(Done):
        trainer._generate_and_score_completions([dict(row) for row in rows])
    metrics = trainer._metrics["train"]
    figures["generated_tokens"] = metrics["rollout/generated_tokens"][-1]
    figures |= {name: values[-1] for name, values in metrics.items() if name.startswith("tree/")}
    return figures


def measure(options: argparse.Namespace) -> dict:
    if options.random:
        model, tokenizer = demo_shape(toy=options.toy), atlas_tokenizer()
    else:
        model, tokenizer = load_model(prepare_model(options.model)), load_tokenizer(options.model)
    model = model.to(options.device, torch.bfloat16 if options.bf16 else torch.float32)
    tokenizer.chat_template = qwen2_5_chat_template
    questions = random.Random(0).sample(ATLAS.questions, options.prompts)
    rows = [{"prompt": [{"role": "user", "content": q["question"]}], "answer": "x"} for q in questions]
    rows = [row for row in rows for _ in range(LEAVES)]
    trainers = {
        "chains": make_trainer(model, tokenizer, rows, options),
        "trees": make_trainer(model, tokenizer, rows, options, **TREE, tree_choice=options.choice),
    }
    runs = {name: [] for name in trainers}
    parse_response = {"parse_response": call_until(options.tool_turns)}
    with (
        replaced(trl.trainer.grpo_trainer, **parse_response),
        replaced(a2tgpo_trl.rollout.protocols.chat, **parse_response),
    ):
        for trainer in trainers.values():  # does not count
            rolled_out(trainer, rows, seed=0)
        for number in range(options.rounds):
            for name in list(trainers)[:: -1 if number % 2 else 1]:
                runs[name].append(rolled_out(trainers[name], rows, seed=number + 1))
            shown = {name: {field: round(v, 3) for field, v in found[-1].items()} for name, found in runs.items()}
            print(f"round {number + 1}: {shown}", flush=True)
    return {
        "chains_over_trees": {field: compared(runs, field) for field in ("generated_tokens", "seconds")},
        "trees": {name: statistics.mean(run[name] for run in runs["trees"]) for name in runs["trees"][0]},
        "chains": {name: statistics.mean(run[name] for run in runs["chains"]) for name in runs["chains"][0]},
        "runs": runs,
    }


def compared(runs: dict[str, list[dict]], field: str) -> dict[str, float]:
    """Median over the rounds of the chains' figure over the trees', with the lowest and the highest."""
    pairs = zip(runs["chains"], runs["trees"], strict=True)
    ratios = [chains[field] / trees[field] for chains, trees in pairs]
    return {name: round(f(ratios), 3) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    report(__file__, "a leaf of a tree against a rollout that starts from the prompt", options, measure(options))


if __name__ == "__main__":
    main()
