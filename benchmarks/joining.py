"""
Claim: where rollouts join vLLM's running engine, all are done within 1.2 times the tools and the own generation of the slowest one.

16 rollouts of four tool turns and a last one, chat template calls. A call sleeps 100 to 200 ms, one in ten 3 s; how long the n-th call
of a rollout takes is the same on every side. The model writes one word over and over, with a chance of 1 in 20 to go on to its call: 20
tokens a turn on average, sampled. It has four layers of width 512 in float32. vLLM is its CPU build, on one thread, started without
compiling.

`trl`: `GRPOTrainer`, which runs the tools of one rollout after those of another. `batches`: `A2TGPOTrainer`, whose ready rollouts are written
in batches of TRL's, tools beside them. `joined`: the same, whose rollouts join the engine. The sides take turns in one process; a round
that does not count goes before. What is told of each: seconds until half of the rollouts were done, and until all were.

The bound of a run is that of its slowest rollout, without a wait for another one: the seconds of its tools and, for each of its tokens,
those that a step of the engine took in this run. A machine that is busy with something else makes both longer.

    .venv-vllm/bin/python benchmarks/joining.py     # the environment of `make test-vllm`

Writes the figures as JSON beside itself.
"""

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two threads of a model this small wait for each other where a machine is shared

import torch
import trl.generation.vllm_generation as generation
import vllm
import vllm.model_executor.layers.utils as layers
from datasets import Dataset
from measuring import ratio, report
from scripted import END, make_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer
from vllm_rollouts import keep_weights

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.integrations.replaced import replaced
from a2tgpo_trl.rollout import player

NUM_ROLLOUTS, NUM_CALLS = 16, 4
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
WIDTH = 512  # of the model, and tokens of its vocabulary


def latency(seed: int, rollout: int, call: int) -> float:
    draw = random.Random(f"{seed} {rollout} {call}")
    return 3.0 if draw.random() < 0.1 else draw.uniform(0.1, 0.2)


class Library:
    """An environment whose calls sleep; `seed` of all is set for each round, and without one they are instant."""

    seed: int | None = None

    def reset(self, number: int, **row) -> None:
        self.number = number
        self.calls = 0

    def look(self) -> str:
        """Look something up."""
        if Library.seed is not None:
            time.sleep(latency(Library.seed, self.number, self.calls))
        self.calls += 1
        return "Nothing."


def save_model(folder: Path) -> None:
    """A model whose next token hangs on the last one alone, with layers that add nothing but their time."""
    tokenizer = make_tokenizer([CALL, " so"])
    tokenizer.add_tokens([CALL, " so"])
    word, call, end = tokenizer.convert_tokens_to_ids([" so", CALL, END])
    newline = tokenizer("\n")["input_ids"][-1]  # after `<|im_start|>assistant`
    config = LlamaConfig(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=4096,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    follow = torch.zeros(WIDTH, WIDTH)
    follow[word, newline] = follow[end, call] = 40.0
    follow[word, word], follow[call, word] = 40.0, 40.0 - math.log(19)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(WIDTH))
        model.lm_head.weight.copy_(follow / WIDTH**0.5)  # the norm makes the one number of a token this large
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows() -> list[dict]:
    prompt = [{"role": "user", "content": "What is known?"}]
    return [{"prompt": prompt, "number": number, "answer": "nothing"} for number in range(NUM_ROLLOUTS)]


def make_trainer(trainer_class, config_class, folder: Path, **options):
    return trainer_class(
        model=str(folder),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            per_device_train_batch_size=NUM_ROLLOUTS,
            num_generations=NUM_ROLLOUTS,
            max_tool_calling_iterations=NUM_CALLS,
            max_completion_length=2000,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=4096,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list(rows()),
        processing_class=AutoTokenizer.from_pretrained(folder),
        environment_factory=Library,
    )


class _RolledOut(Exception):
    pass


def roll_out(trainer, batch: list[dict]) -> dict:
    """Rollouts of a batch, without their scoring: when half were done and when all, what each wrote, the engine's steps."""
    generate, done, steps = trainer._generate, {}, []
    engine = trainer.vllm_generation.llm.llm_engine
    step = engine.step

    def timed_step():
        begin = time.perf_counter()
        outputs = step()
        steps.append(time.perf_counter() - begin)
        return outputs

    def note(bar, finished: int) -> None:
        done.setdefault(finished, time.perf_counter() - start)

    def keep(prompts):
        nonlocal start
        start = time.perf_counter()
        _, _, masks, *_ = generate(prompts)
        done[len(batch)] = time.perf_counter() - start
        raise _RolledOut(masks)

    start = 0.0
    try:
        with (
            replaced(trainer, _generate=keep),
            replaced(player, _show_finished=note),
            replaced(engine, step=timed_step),
        ):
            trainer._generate_and_score_completions([dict(row) for row in batch])
    except _RolledOut as output:
        (masks,) = output.args
    half = min(seconds for finished, seconds in done.items() if finished >= len(batch) / 2)
    written = [sum(mask) for mask in masks]
    return {
        "half": half,
        "all": done[len(batch)],
        "steps": len(steps),
        "step": statistics.mean(steps),
        "tokens": written,
    }


def bound(seed: int, run: dict) -> float:
    """Seconds of the slowest rollout's own tools and own tokens."""
    return max(
        sum(latency(seed, number, call) for call in range(NUM_CALLS)) + written * run["step"]
        for number, written in enumerate(run["tokens"])
    )


def start_trainers(folder: Path) -> dict:
    save_model(folder)
    layers.dispatch_cpu_unquantized_gemm = keep_weights
    generation.LLM = partial(generation.LLM, dtype="float32", enforce_eager=True)
    ours = make_trainer(A2TGPOTrainer, A2TGPOConfig, folder, advantage_estimator="grpo")
    return {"trl": make_trainer(GRPOTrainer, GRPOConfig, folder), "batches": ours, "joined": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = start_trainers(Path(folder))
    turns = trainers["joined"]._player.turns
    assert turns.joins
    runs = {side: [] for side in trainers}
    for number in range(-1, options.rounds):
        Library.seed = None if number < 0 else number
        for side in list(trainers)[:: -1 if number % 2 else 1]:
            with replaced(turns, joins=side == "joined"):
                run = roll_out(trainers[side], rows())
            if number >= 0:
                run["bound"] = bound(number, run)
                runs[side].append(run)
                shown = ", ".join(f"{name} {run[name]:.2f} s" for name in ("half", "all", "bound"))
                print(f"round {number + 1}, {side}: {shown}, {run['steps']} steps", flush=True)
    halves, wholes, bounds = (
        {side: [run[name] for run in found] for side, found in runs.items()} for name in ("half", "all", "bound")
    )
    figures = {
        "vllm": vllm.__version__,
        "median_steps": {side: statistics.median(run["steps"] for run in found) for side, found in runs.items()},
        "median_seconds_until_half": {side: round(statistics.median(found), 2) for side, found in halves.items()},
        "median_seconds_until_all": {side: round(statistics.median(found), 2) for side, found in wholes.items()},
        "over_bound": {side: ratio({"all": wholes[side], "bound": bounds[side]}, "all", "bound") for side in runs},
        "over_joined_until_half": {side: ratio(halves, side, "joined") for side in ("trl", "batches")},
        "over_joined_until_all": {side: ratio(wholes, side, "joined") for side in ("trl", "batches")},
        "runs": runs,
    }
    report(__file__, __doc__.strip().splitlines()[0], options, figures)


if __name__ == "__main__":
    main()
