"""
Claim: a whole step of an agent with slow tools, rollouts and updates, takes at most 1 / 2.5 of the time of `GRPOTrainer`'s.

A step is a generation batch of 32 rollouts (4 questions, 8 each, as in the demo) and its eight updates of four rollouts. A rollout has
eight tool turns and an answer, chat template calls. Each call sleeps 100 to 200 ms: its arguments say how long, so that a call takes the
same time on every side. The model is a Llama of four layers, 3.4 M weights in float32, which a warm start has taught to call the tool
until a result tells it to answer. What it writes is sampled: the page of each call is random, all else nearly certain. Every rollout
has to make its eight calls, which is checked. Rewards alternate, so that every update has a gradient.

`trl`: `GRPOTrainer`, which runs the tools of one rollout after those of another (asynchronous ones too), starts to generate when all of
them are done, and reads each history anew. It has no beliefs. `a2tgpo`: `A2TGPOTrainer` at its defaults, with beliefs. `grpo`: the same
without beliefs. All have the same checkpoint, questions, batches and limits; other options are each trainer's defaults.

Each measurement is a process of its own, and the sides take turns: one step with tools that do not sleep, which does not count, then one
with tools that do. Memory is the peak of the process (`ru_maxrss`). The JSON tells apart what a step consists of: the rollouts, and for
how much of that at least one tool ran; the scoring, which includes beliefs; and the updates. The ratio depends on these shares: the more
generation and updates weigh (`--layers 12`), the nearer to 1.

    python benchmarks/agent_step.py
    .venv-vllm/bin/python benchmarks/agent_step.py --backend vllm     # the environment of `make test-vllm`
    python benchmarks/agent_step.py --toy --layers 2 --turns 2 --prompts 1 --rounds 1

The figures stand in a JSON beside the script: `agent_step.json`, with vLLM `agent_step_vllm.json`. The checkpoint is kept in
`outputs/agent-step` for the next run.
"""

import argparse
import importlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from measuring import ratio, report
from scripted import call, make_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.integrations.replaced import replaced

ATLAS = load_atlas()
GROUP_SIZE, UPDATES = 8, 8
LATENCY = (0.1, 0.2)  # seconds
SIDES = {
    "trl": (GRPOTrainer, GRPOConfig),
    "a2tgpo": (A2TGPOTrainer, A2TGPOConfig),
    "grpo": (A2TGPOTrainer, partial(A2TGPOConfig, advantage_estimator="grpo")),
}
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}


class Tools:
    """A tool that sleeps, and when each of its calls began and ended."""

    def __init__(self, turns: int):
        self.turns = turns
        self.latency = LATENCY
        self.calls: list[tuple[float, float]] = []

    def look(self, step: int, page: int) -> str:
        """
        Look something up.

        Args:
            step: Number of the step.
            page: Number of the page.
        """
        start = time.perf_counter()
        time.sleep(random.Random(f"{step} {page}").uniform(*self.latency))
        self.calls.append((start, time.perf_counter()))
        return observation(step, page, self.turns)


def observation(step: int, page: int, turns: int) -> str:
    text = " ".join(passage["text"] for passage in random.Random(f"{step} {page}").sample(ATLAS.passages, 3))
    return f"{text} Now {'answer' if step == turns else f'step {step + 1}'}."


def busy_seconds(calls: list[tuple[float, float]]) -> float:
    """For how long at least one call ran."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(calls):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def trace(question: str, turns: int, draw: random.Random) -> list[dict]:
    """A conversation in which the tool is called as often as there are turns, each time for a page at random."""
    messages = [{"role": "user", "content": question}]
    for step in range(1, turns + 1):
        page = draw.randrange(10)
        function = {"name": "look", "arguments": {"step": step, "page": page}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": "look", "content": observation(step, page, turns)},
        ]
    return [*messages, {"role": "assistant", "content": f"<answer>{draw.randrange(10)}</answer>"}]


def tokenized(messages: list[dict], tokenizer) -> dict[str, list[int]]:
    """Ids of a conversation, and as labels those that the model writes."""
    encoded = tokenizer.apply_chat_template(
        messages,
        tools=[Tools(0).look],
        chat_template=get_training_chat_template(tokenizer),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, written = encoded["input_ids"], encoded["assistant_masks"]
    return {"input_ids": ids, "labels": [i if mask else -100 for i, mask in zip(ids, written, strict=True)]}


def random_row(draw: random.Random) -> dict:
    return {"prompt": trace(draw.choice(ATLAS.questions)["question"], 0, draw)[:1], "answer": str(draw.randrange(10))}


def warm_start(options: argparse.Namespace) -> None:
    """Train a model to make its calls and save it with its tokenizer, unless that was done before."""
    if checkpoint(options).is_dir():
        return
    model, tokenizer = untrained(options)
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    peak = 8e-3 if options.toy else 2e-3
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=options.warm_start_steps)
    for step in range(options.warm_start_steps):
        example = tokenized(trace(draw.choice(ATLAS.questions)["question"], options.turns, draw), tokenizer)
        loss = model(**{name: torch.tensor([ids]) for name, ids in example.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            print(f"warm start, step {step + 1}: loss {loss.item():.3f}", flush=True)
    tokenizer.save_pretrained(checkpoint(options))
    model.save_pretrained(checkpoint(options))


def checkpoint(options: argparse.Namespace) -> Path:
    return options.folder / f"{'toy' if options.toy else 'model'}-{options.layers}-layers-{options.turns}-turns"


def untrained(options: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    calls = [call("look", step=step, page=page) for step in range(10) for page in range(10)]
    texts = [passage["text"] for passage in ATLAS.passages] + [question["question"] for question in ATLAS.questions]
    tokenizer = make_tokenizer([*calls, *[qwen2_5_chat_template] * 20, *texts], vocab_size=1024)
    torch.manual_seed(0)
    config = LlamaConfig(
        **(TOY if options.toy else SHAPE),
        num_hidden_layers=options.layers,
        vocab_size=1024,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def alternate(completions: list, **kwargs) -> list[float]:
    """A reward that differs within each group, whatever was sampled."""
    return [float(i % 2) for i in range(len(completions))]


def make_trainer(options: argparse.Namespace, tools: Tools):
    trainer_class, config_class = SIDES[options.side]
    completion = 256 * (options.turns + 1)
    backend = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": completion + 512}
    if options.backend == "vllm":
        prepare_vllm()
    draw = random.Random(1)
    trainer = trainer_class(
        model=str(checkpoint(options)),
        reward_funcs=alternate,
        args=config_class(
            tempfile.mkdtemp(),
            num_generations=GROUP_SIZE,
            per_device_train_batch_size=options.prompts * GROUP_SIZE // UPDATES,
            steps_per_generation=UPDATES,
            gradient_accumulation_steps=1,
            max_steps=UPDATES,
            max_completion_length=completion,
            temperature=0.5,  # slips become rare, pages stay as likely as each other
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **(backend if options.backend == "vllm" else {}),
        ),
        train_dataset=Dataset.from_list([random_row(draw) for _ in range(options.prompts)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint(options)),
        tools=[tools.look],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def prepare_vllm() -> None:
    """vLLM in float32, with weights that can be pushed again."""
    generation = importlib.import_module("trl.generation.vllm_generation")
    layers = importlib.import_module("vllm.model_executor.layers.utils")
    layers.dispatch_cpu_unquantized_gemm = importlib.import_module("vllm_rollouts").keep_weights
    generation.LLM = partial(generation.LLM, dtype="float32")


def timed(method, spent: list[float]):
    def run(*args, **kwargs):
        start = time.perf_counter()
        output = method(*args, **kwargs)
        spent.append(time.perf_counter() - start)
        return output

    return run


def measure_side(options: argparse.Namespace) -> dict:
    """What one step takes, after one with instant tools that does not count."""
    tools = Tools(options.turns)
    trainer = make_trainer(options, tools)
    with replaced(tools, latency=(0.0, 0.0)):
        trainer.train()
    tools.calls.clear()
    rollouts, scored = [], []
    timers = {
        "_generate": timed(trainer._generate, rollouts),
        "_generate_and_score_completions": timed(trainer._generate_and_score_completions, scored),
    }
    with replaced(trainer, **timers):
        start = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - start
    log = next(log for log in trainer.state.log_history if "completions/mean_length" in log)
    return {
        "seconds": total,
        "rollouts": sum(rollouts),
        "tools": busy_seconds(tools.calls),
        "scoring": sum(scored) - sum(rollouts),
        "updates": total - sum(scored),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "calls_per_rollout": len(tools.calls) / (options.prompts * GROUP_SIZE),
        "tool_seconds_in_sum": sum(end - start for start, end in tools.calls),
        "completion_tokens": log["completions/mean_length"],
        "threads": torch.get_num_threads(),
    }


def in_own_process(options: argparse.Namespace, side: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        arguments = [*sys.argv[1:], "--side", side, "--output", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)
        return json.loads(output.read_text())


def measure(options: argparse.Namespace, run) -> dict:
    """Figures of all sides, which take turns; `run` measures one of them."""
    runs = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in list(SIDES)[:: -1 if number % 2 else 1]:
            found = run(options, side)
            assert abs(found["calls_per_rollout"] / options.turns - 1) < 0.02, f"{found['calls_per_rollout']} calls"
            runs[side].append(found)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"round {number + 1}, {side}: {shown}", flush=True)
    seconds, megabytes = (
        {side: [run[field] for run in found] for side, found in runs.items()} for field in ("seconds", "megabytes")
    )
    ours = [side for side in SIDES if side != "trl"]
    medians = {
        side: {field: round(statistics.median(run[field] for run in found), 3) for field in found[0]}
        for side, found in runs.items()
    }
    return {
        "trl_over": {side: ratio(seconds, "trl", side) for side in ours},
        "memory_over_trl": {side: ratio(megabytes, side, "trl") for side in ours},
        "share_of_time_in_tools": {side: round(m["tools"] / m["seconds"], 3) for side, m in medians.items()},
        "medians": medians,
        "runs": runs,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--prompts", type=int, default=4, help="of a batch, with eight rollouts each")
    parser.add_argument("--turns", type=int, default=8, help="tool turns of a rollout")
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--warm-start-steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("outputs/agent-step"), help="of the checkpoints")
    parser.add_argument("--toy", action="store_true", help="a smaller model, to try the script")
    parser.add_argument("--side", choices=SIDES, help="measure this one in this process")
    parser.add_argument("--output", type=Path, help="where to write what --side measures")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.side:
        options.output.write_text(json.dumps(measure_side(options)))
        return
    warm_start(options)
    figures = measure(options, in_own_process)
    script = Path(__file__)
    if options.backend == "vllm":
        script = script.with_stem("agent_step_vllm")
        figures = {"vllm": importlib.import_module("vllm").__version__, **figures}
    report(script, "a step of an agent with slow tools, against GRPOTrainer's", options, figures)


if __name__ == "__main__":
    main()
