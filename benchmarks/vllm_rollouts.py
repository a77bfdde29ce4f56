"""
Claim: none is made in advance; this says what the demo's rollouts take on vLLM's CPU build beside `model.generate`.

The demo's warm-started agent answers 24 held-out questions greedily, with its beliefs, on both backends in turn, in bfloat16.
vLLM is compiled, as TRL starts it; its start and first batch are not counted but told. Needs the environment of `make test-vllm`:

    .venv-vllm/bin/python benchmarks/vllm_rollouts.py

Writes the figures as JSON beside itself.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm
import vllm.model_executor.layers.utils as layers
from measuring import in_turn, ratio, report

from a2tgpo_trl.data import to_dataset
from a2tgpo_trl.demo.model import prepare_model
from a2tgpo_trl.demo.run import DemoSettings, warm_start
from a2tgpo_trl.demo.training import PROMPT_TEMPLATE, load_task, make_trainer


def keep_weights(layer, remove_weight: bool) -> None:
    """vLLM's CPU build packs a copy of each weight and throws the original away, so that none can be pushed again."""
    layer.cpu_linear = torch.nn.functional.linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"), help="with the demo's model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=24)
    options = parser.parse_args()

    layers.dispatch_cpu_unquantized_gemm = keep_weights
    task = load_task()
    model = prepare_model(options.folder / "model")
    adapter = warm_start(DemoSettings(), model, options.folder / "seed-0" / "warm-start", task)
    rows = list(to_dataset(task.held_out[: options.questions], PROMPT_TEMPLATE))
    starts, trainers = {}, {}
    for name, backend in (("transformers", {}), ("vllm", {"use_vllm": True, "vllm_max_model_length": 512})):
        start = time.perf_counter()
        trainers[name] = make_trainer(model, adapter, task, options.folder / "vllm-rollouts", 1, 0, **backend)
        trainers[name].play(rows, greedy=True)
        starts[name] = round(time.perf_counter() - start, 1)
    played = {name: trainer.play(rows, greedy=True) for name, trainer in trainers.items()}
    same = [ours.completion == theirs.completion for ours, theirs in zip(*played.values(), strict=True)]
    seconds = in_turn({name: lambda t=t: t.play(rows, greedy=True) for name, t in trainers.items()}, options.rounds)
    figures = {
        "vllm": vllm.__version__,
        "transformers_over_vllm": ratio(seconds, "transformers", "vllm"),
        "seconds_to_start_and_first_batch": starts,
        "same_completions_in_bfloat16": f"{sum(same)} of {len(same)}",
        "seconds": seconds,
    }
    report(__file__, "the demo's greedy rollouts with beliefs, transformers against vLLM on a CPU", options, figures)


if __name__ == "__main__":
    main()
