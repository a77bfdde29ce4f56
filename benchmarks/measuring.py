"""What the benchmarks share: options, fair timing, peak memory, and a model of the demo's shape."""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import accelerate
import peft
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, LlamaConfig


def make_parser(script_doc: str, rounds: int, threads: int = 2) -> argparse.ArgumentParser:
    """Options that benchmarks of a model share."""
    parser = argparse.ArgumentParser(description=script_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, with weights in float32")
    parser.add_argument("--toy", action="store_true", help="random models of one layer, to try the script")
    return parser


def add_demo_model(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options of benchmarks of the demo's model."""
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--random", action="store_true", help="a random model of its shape, and a tokenizer made here")
    return parser


SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
TOY = {"vocab_size": 1024, "hidden_size": 144, "intermediate_size": 144, "num_hidden_layers": 1}


def demo_shape(device: str = "cpu", toy: bool = False):
    """A random model of SmolLM2-135M's shape: 30 layers, 9 heads, 3 of keys and values, a vocabulary of 49,152."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **(TOY if toy else SMOLLM2),
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.to(device).eval()


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turn(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method in each round, after one run of each that does not count."""
    for run in methods.values():
        run()
    wait()
    seconds = {name: [] for name in methods}
    for number in range(rounds):
        for name in list(methods)[:: -1 if number % 2 else 1]:  # who comes first has no lasting advantage
            start = time.perf_counter()
            methods[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {times[-1]:.3g} s" for name, times in seconds.items()),
            flush=True,
        )
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Median over the rounds of one method's time over another's, with the lowest and the highest."""
    ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    return {name: round(f(ratios), 3) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def peak_megabytes(run: Callable[[], object]) -> float:
    """Most memory while it runs above what was held before: of the GPU where one is used, else of the process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = _memory("VmRSS")
    run()
    return round(_memory("VmHWM") - before, 1)


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def versions() -> dict[str, str]:
    """Of the packages that a training step runs in."""
    return {module.__name__: str(module.__version__) for module in (torch, transformers, trl, peft, accelerate)}


def measured_before(script: str | Path, names: Iterable[str]) -> dict[str, dict]:
    """Of the figures beside a script those with these names, if this machine with these versions gave them."""
    stored = Path(script).with_suffix(".json")
    content = json.loads(stored.read_text()) if stored.exists() else {}
    if (content.get("versions"), content.get("machine")) != (versions(), _machine()):
        return {}
    return {name: content[name] for name in names if name in content}


def report(script: str | Path, claim: str, options: object, figures: dict) -> None:
    """Print figures, and write them as JSON beside the script with what they were measured on."""
    chosen = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    content = {"claim": claim, "options": chosen, "versions": versions(), "machine": _machine(), **figures}
    Path(script).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({name: value for name, value in figures.items() if name not in ("seconds", "runs")}, indent=1))


def _machine() -> dict[str, str | int]:
    return {"processor": _processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
