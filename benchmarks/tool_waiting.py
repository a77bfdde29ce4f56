"""
Claims: the tool phase of a rollout takes about as long as the slowest call of each turn, and a rollout with a slow tool
does not hold up the others.

1. 32 rollouts of three tool turns, tools that sleep 100 to 200 ms at random, generation that takes no time: TRL's loop,
   ours, and ours in lockstep, against the bound (sum over the turns of the slowest call).
2. 32 rollouts of three tool turns, one call in ten takes 3 s and the others 50 to 100 ms; a generation takes 0.3 s and
   10 ms for each row: how long until half of the rollouts are done, and until all are.

    python benchmarks/tool_waiting.py

Writes the figures as JSON beside itself.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from scripted import ANSWER, call, make_trainer, play, rows
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer

NUM_ROLLOUTS, NUM_TURNS = 32, 3


def uniform(rollout: int, turn: int, seed: int) -> float:
    return random.Random(f"{rollout} {turn} {seed}").uniform(0.1, 0.2)


def heavy_tailed(rollout: int, turn: int, seed: int) -> float:
    draw = random.Random(f"{rollout} {turn} {seed}")
    return 3.0 if draw.random() < 0.1 else draw.uniform(0.05, 0.1)


def wait(seconds: float) -> str:
    """
    Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "waited"


class Writer:
    """Writes the calls of each rollout in turn; a generation takes `fixed` seconds and `each` for a row."""

    def __init__(self, tokenizer, latency, seed: int, fixed: float = 0.0, each: float = 0.0):
        self.fixed, self.each = fixed, each
        self.scripts = []
        for rollout in range(NUM_ROLLOUTS):
            calls = [call("wait", seconds=latency(rollout, turn, seed)) for turn in range(NUM_TURNS)]
            self.scripts.append([tokenizer(text)["input_ids"] for text in [*calls, ANSWER]])
        self.written = [None] * NUM_ROLLOUTS
        self.start = time.perf_counter()
        self.done = []
        self.num_generations = 0

    def __call__(self, contexts: list[list[int]]) -> list[list[int]]:
        time.sleep(self.fixed + self.each * len(contexts))
        self.num_generations += 1
        turns = []
        for i, context in enumerate(contexts):
            row = i if None in self.written else self._row_of(context)
            turns.append(self.scripts[row].pop(0))
            self.written[row] = context + turns[-1]
            if not self.scripts[row]:
                self.done.append(time.perf_counter() - self.start)
        return turns

    def _row_of(self, context: list[int]) -> int:
        return next(row for row, written in enumerate(self.written) if context[: len(written)] == written)


def seconds(trainer, latency, seed: int, **generation) -> tuple[float, float, int]:
    """Seconds until half of the rollouts were done and until all were, and how many generations it took."""
    writer = Writer(trainer._tokenizer, latency, seed, **generation)
    _, _, masks, *_ = play(trainer, writer, rows(NUM_ROLLOUTS))
    assert len(writer.done) == NUM_ROLLOUTS and all(0 in mask for mask in masks)
    return statistics.median(writer.done), max(writer.done), writer.num_generations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours = dict(advantage_estimator="grpo")
    trainers = {
        "trl": make_trainer(GRPOTrainer, GRPOConfig, [wait], NUM_ROLLOUTS),
        "ours": make_trainer(A2TGPOTrainer, A2TGPOConfig, [wait], NUM_ROLLOUTS, **ours),
        "ours in lockstep": make_trainer(A2TGPOTrainer, A2TGPOConfig, [wait], NUM_ROLLOUTS, lockstep=True, **ours),
    }
    report = {"claim": __doc__.strip().splitlines()[0], "rounds": options.rounds, "torch": torch.__version__}

    runs = {name: [] for name in trainers}
    bounds = []
    for seed in range(options.rounds):
        bounds.append(sum(max(uniform(r, turn, seed) for r in range(NUM_ROLLOUTS)) for turn in range(NUM_TURNS)))
        for name, trainer in trainers.items():
            runs[name].append(seconds(trainer, uniform, seed)[1])
            print(f"seed {seed}  {name:18} {runs[name][-1]:6.2f} s  (bound {bounds[-1]:.2f} s)", flush=True)
    report["concurrent"] = {
        "seconds": runs,
        "bound": bounds,
        "trl_over_ours": ratios(runs["trl"], runs["ours"]),
        "trl_over_lockstep": ratios(runs["trl"], runs["ours in lockstep"]),
        "ours_over_bound": ratios(runs["ours"], bounds),
        "lockstep_over_bound": ratios(runs["ours in lockstep"], bounds),
    }

    slow = {name: [] for name in trainers if name != "trl"}
    for seed in range(options.rounds):
        for name in slow:
            slow[name].append(seconds(trainers[name], heavy_tailed, seed, fixed=0.3, each=0.01))
            half, end, generations = slow[name][-1]
            print(
                f"seed {seed}  {name:18} half {half:5.2f} s  all {end:5.2f} s  {generations} generations", flush=True
            )
    half, end, generations = ({name: [run[i] for run in slow[name]] for name in slow} for i in range(3))
    report["slow_tools"] = {
        "seconds_until_half": half,
        "seconds_until_all": end,
        "generations": generations,
        "lockstep_over_ours_until_half": ratios(half["ours in lockstep"], half["ours"]),
        "lockstep_over_ours_until_all": ratios(end["ours in lockstep"], end["ours"]),
    }
    for part in (report["concurrent"], report["slow_tools"]):
        print(json.dumps({name: value for name, value in part.items() if "_over_" in name}, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    values = [a / b for a, b in zip(above, below, strict=True)]
    return {name: round(f(values), 2) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
