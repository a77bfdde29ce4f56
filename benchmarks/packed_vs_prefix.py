"""
Claim: all beliefs of a completion in one packed forward are several times faster than one prefix per turn.

Scores the same rows both ways, in turn, on a random model of the demo's shape (135 M parameters), and compares times
and values.

    python benchmarks/packed_vs_prefix.py

Writes the figures as JSON beside itself.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl.belief import Probe, ProbedRow, packed_beliefs, prefix_beliefs

SHAPE = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


def build(dtype: torch.dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype, attn_implementation="sdpa").eval()
    add_fused_lm_head(model)
    return model


def rows(batch_size: int, tokens: int, turns: int, probe_tokens: int) -> list[ProbedRow]:
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(0, 49152, (n,), generator=generator).tolist()

    step = tokens // (turns + 1)  # the prompt is as long as a turn with its observation
    probe = Probe(ids(probe_tokens), [False] * 3 + [True] * (probe_tokens - 6) + [False] * 3)
    return [ProbedRow(ids(tokens), [step * (k + 1) for k in range(turns + 1)], probe) for _ in range(batch_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2, help="completions of a micro-batch")
    parser.add_argument("--tokens", type=int, default=900, help="tokens of prompt and completion")
    parser.add_argument("--turns", type=int, default=4, help="tool turns of a completion")
    parser.add_argument("--probe-tokens", type=int, default=10, help="tokens of the filled template")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each method")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, cpu = build(getattr(torch, options.dtype)), torch.device("cpu")
    batch = rows(options.batch_size, options.tokens, options.turns, options.probe_tokens)

    @torch.no_grad()
    def score(**inputs):
        return model(**inputs, fused_lm_head=True).log_probs

    methods = {
        "prefix": lambda: prefix_beliefs(score, batch, cpu),
        "packed": lambda: packed_beliefs(score, batch, None, cpu),
    }
    values = {name: run() for name, run in methods.items()}  # warm-up, and what is compared
    times = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = {
        "claim": "beliefs: one packed forward against one prefix per turn",
        "options": vars(options),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "seconds": times,
        "prefix_over_packed": round(median["prefix"] / median["packed"], 2),
        "spread": [
            round(f(p / q for p, q in zip(times["prefix"], times["packed"], strict=True)), 2) for f in (min, max)
        ],
        "largest_difference": (values["prefix"] - values["packed"]).abs().max().item(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=1))


if __name__ == "__main__":
    main()
