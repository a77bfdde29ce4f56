"""The parts of check.py: each takes its options and yields names and figures, the first as soon as they are known."""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import belief_scoring
import loss_cost
import pytest
import rollout_history
import shared_forward
import step_cost
import torch
from check import GGUF, ROOT, find_gguf
from measuring import demo_shape, wait
from scripted import atlas_tokenizer
from transformers import AutoModelForCausalLM, Qwen2Config, TrainerCallback
from trl import ModelConfig

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.cli.memory import estimate, peak
from a2tgpo_trl.cli.parser import parse
from a2tgpo_trl.cli.train import DESCRIPTION, TrainArguments, build
from a2tgpo_trl.data import to_dataset
from a2tgpo_trl.demo.model import prepare_model
from a2tgpo_trl.demo.run import DemoSettings
from a2tgpo_trl.demo.training import UPDATES_PER_BATCH, load_task, make_trainer, summarize
from a2tgpo_trl.demo.warmup import PROMPT_TEMPLATE, WarmStart, warm_up

Figures = Iterator[tuple[str, object]]


def suite(options: argparse.Namespace) -> Figures:
    """The tests of what a GPU does in another way."""
    os.chdir(ROOT)
    seen = Outcomes()
    arguments = ["tests/test_cuda.py", "--test-device", options.device, "-p", "no:cacheprovider", "--tb=short", "-v"]
    status = pytest.main(arguments, plugins=[seen])
    yield "tests", seen.outcomes
    yield "seconds", seen.seconds
    if seen.failures:
        yield "failures", seen.failures
    if status or "passed" not in seen.outcomes.values():
        raise AssertionError(f"pytest ended with {status!r}: {', '.join(seen.failures) or 'see the log'}")


class Outcomes:
    """A plugin of pytest that keeps what became of each test."""

    def __init__(self):
        self.outcomes, self.seconds, self.failures = {}, {}, {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("::")[2]
        self.seconds[name] = round(self.seconds.get(name, 0) + report.duration, 2)
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome
        if report.failed:
            self.failures[name] = report.longreprtext[-1500:]


def beliefs(options: argparse.Namespace) -> Figures:
    """Belief scoring against one forward over as many tokens, and against prefix by prefix in float32."""
    small, large = "--rows 8 --tokens 2000 --rounds 5", "--rows 16 --tokens 4000 --rounds 3 --prefix-rounds 1"
    sizes = {"16,000 tokens": small, "64,000 tokens": large}
    if options.toy:
        sizes = {"toy": "--rows 1 --tokens 300 --turns 2 --group 2 --long 400 --rounds 1 --prefix-rounds 1"}
    for name, size in sizes.items():
        yield name, measured(belief_scoring, options, f"--bf16 {size}")


def training(options: argparse.Namespace) -> Figures:
    """Beliefs that share a forward, and a whole step."""
    size = "--rows 1 --tokens 300 --long 400 --rounds 1" if options.toy else "--rows 8 --rounds 10"
    yield "shared", measured(shared_forward, options, f"--bf16 --random {size}")
    yield "step", measured(step_cost, options, f"--random --rounds {1 if options.toy else 4}")


def scaling(options: argparse.Namespace) -> Figures:
    """The loss and its backward pass by the size of the micro-batch, against GRPOTrainer's."""
    sizes = [1, 2] if options.toy else [1, 2, 4, 8, 16, 32, 64]
    rounds = 1 if options.toy else 8
    for rows in sizes:
        yield f"{rows} rows of 300 tokens", measured(loss_cost, options, f"--bf16 --rows {rows} --rounds {rounds}")


def history(options: argparse.Namespace) -> Figures:
    """Rollouts of eight tool turns, histories kept, against TRL's loop."""
    size = "--rollouts 2 --turn-tokens 4 --rounds 1" if options.toy else "--rollouts 32 --turn-tokens 32 --rounds 2"
    yield "random weights", measured(rollout_history, options, f"--bf16 --random --tool-turns 8 {size}")


def measured(script, options: argparse.Namespace, arguments: str) -> dict:
    """Figures of one of the benchmarks."""
    chosen = script.parse([*arguments.split(), "--device", options.device, *["--toy"] * options.toy])
    return {"arguments": arguments, **script.measure(chosen)}


# ---- the demo ------------------------------------------------------------------------------------------------------


class UntilMark(TrainerCallback):
    """
    Plays held-out questions after each rollout batch, with the clock stopped, and ends training once all are good enough.

    Args:
        play (`Callable`): Returns exact match by name.
        mark (`float`): What is good enough.
        deadline (`float`): Of `time.monotonic`, when training ends at the latest.
    """

    def __init__(self, play, mark: float, deadline: float):
        self.play, self.mark, self.deadline = play, mark, deadline
        self.seconds, self.points = 0.0, []

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % UPDATES_PER_BATCH:
            return
        wait()
        self.seconds += time.monotonic() - self._since
        with torch.random.fork_rng():  # what is sampled in training does not hang on how often this is asked
            found = self.play()
        batch = state.global_step // UPDATES_PER_BATCH
        self.points.append({"rollout_batch": batch, "seconds_of_training": round(self.seconds, 1), **found})
        print(self.points[-1], flush=True)
        control.should_training_stop = min(found.values()) >= self.mark or time.monotonic() > self.deadline
        self._since = time.monotonic()

    def reached(self) -> dict[str, float | None]:
        """By name, seconds of training until the mark."""
        return {
            mode: next((p["seconds_of_training"] for p in self.points if p[mode] >= self.mark), None)
            for mode in ("greedy", "sampled")
        }


def demo(options: argparse.Namespace) -> Figures:
    """Seconds from the warm start until the demo answers eight of ten held-out questions."""
    begin, use_cpu, toy = time.monotonic(), options.device == "cpu", options.toy
    settings = WarmStart(steps=2, traces_per_step=2) if toy else WarmStart()
    with tempfile.TemporaryDirectory() as name:
        folder, task = Path(name), load_task()
        model = toy_model(folder / "model") if toy else prepare_model(folder / "model", find_gguf(options.model))
        yield "model", "random weights" if toy else GGUF
        start = time.monotonic()
        adapter = warm_up(model, folder / "warm-start", task.train, task.search.search, settings, use_cpu)
        yield "seconds_of_warm_start", round(time.monotonic() - start, 1)

        trainer = make_trainer(
            model,
            adapter,
            task,
            folder / "training",
            1 if toy else DemoSettings().rollout_batches,
            seed=0,
            use_cpu=use_cpu,
        )
        rows = list(to_dataset(random.Random(0).sample(task.held_out, 2 if toy else 40), PROMPT_TEMPLATE))
        trainer.args.per_device_eval_batch_size = len(rows)
        trainer.args.save_strategy = "no"

        def play() -> dict[str, float]:
            torch.manual_seed(0)
            modes = {"greedy": True, "sampled": False}
            return {mode: summarize(trainer.play(rows, greedy))["exact_match"] for mode, greedy in modes.items()}

        start = time.monotonic()
        yield "held_out_before", {"questions": len(rows), **play()}
        yield "seconds_of_two_evaluations", round(time.monotonic() - start, 1)
        until = UntilMark(play, 0.8, begin + options.seconds - 30)
        trainer.add_callback(until)
        trainer.train()
        yield "held_out", until.points
        yield "seconds_of_training_until_0.8", until.reached()
        yield "seconds_with_evaluations", round(time.monotonic() - start, 1)


def toy_model(folder: Path) -> Path:
    demo_shape(toy=True).save_pretrained(folder)
    atlas_tokenizer().save_pretrained(folder)
    return folder


# ---- memory --------------------------------------------------------------------------------------------------------

T4_GIBIBYTES = 15
QWEN_0_5B = dict(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=2,
    pad_token_id=0,
)
TOY_QWEN = {**QWEN_0_5B, "vocab_size": 1024, "hidden_size": 56, "intermediate_size": 56, "num_hidden_layers": 1}


def memory(options: argparse.Namespace) -> Figures:
    """
    `a2tgpo train --config colab-t4` on random weights of Qwen2.5-0.5B's shape, in no more memory than a T4 has.

    What random weights write never ends, so that rollouts are as long as they can be.
    """
    if options.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_GIBIBYTES * 2**30 / total))
    with tempfile.TemporaryDirectory() as name:
        model = random_qwen(Path(name) / "model", options.toy)
        trainer = colab_trainer(model, Path(name), options)
        row = next(iter(trainer.train_dataset))
        prompt = trainer._tokenize_prompts([row["prompt"]])[0][0]
        yield "prompt_tokens", len(prompt)
        phase, most = peak(estimate(trainer, len(prompt)))
        yield "estimated_megabytes", {"most": round(most / 2**20), "while": phase}
        start = time.monotonic()
        trainer.train()
        yield "seconds_of_training", round(time.monotonic() - start, 1)
        logged = trainer.state.log_history[0]
        yield "mean_completion_tokens", logged["completions/mean_length"]
        if options.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            reserved = torch.cuda.memory_reserved()
            yield "cap_megabytes", T4_GIBIBYTES * 1024
            yield "peak_allocated_megabytes", torch.cuda.max_memory_allocated() >> 20
            yield "peak_reserved_megabytes", torch.cuda.max_memory_reserved() >> 20
            yield "beside_the_allocator_megabytes", (total - free - reserved) >> 20


def random_qwen(folder: Path, toy: bool) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(**(TOY_QWEN if toy else QWEN_0_5B))
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    atlas_tokenizer().save_pretrained(folder)
    return folder


def colab_trainer(model: Path, folder: Path, options: argparse.Namespace):
    """As the command makes it, in float16, which is what it chooses on a T4; two updates."""
    given = {"model_name_or_path": model, "output_dir": folder / "run", "max_steps": 2, "save_strategy": "no"}
    given |= {"report_to": "none", "bf16": "false", "fp16": "true", "disable_tqdm": "true"}
    if options.device == "cpu":
        given |= {"use_cpu": "true", "fp16": "false", "dtype": "float32"}
    if options.toy:
        given |= {"max_completion_length": 16}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    kinds = TrainArguments, A2TGPOConfig, ModelConfig
    return build(*parse("train", DESCRIPTION, kinds, ["--config", "colab-t4", *words]))
