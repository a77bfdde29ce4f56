"""Tables of the runs of a grid, as Markdown.

python benchmarks/learning/tables.py [FOLDER] [--threshold 0.5] > table.md
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from scipy.stats import t

HERE = Path(__file__).parent
BASELINES = ("grpo_token", "grpo_turn")

Runs = dict[str, dict[str, dict[int, dict]]]


def load(folder: Path) -> Runs:
    """The runs below a folder: task → cell → seed → run."""
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/*/*.json")):
        run = json.loads(path.read_text())
        runs[run["task"]][run["cell"]][run["seed"]] = run
    return runs


def area(run: dict) -> float:
    """Mean of the curve of sampled exact match over the run, by the trapezoidal rule."""
    points = [(point["batch"], point["exact_match"]) for point in run["curve"]]
    between = pairwise(points)
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in between) / (points[-1][0] - points[0][0])


def final(run: dict) -> float:
    """The last sampled exact match."""
    return run["curve"][-1]["exact_match"]


def batches_to(run: dict, threshold: float) -> int | None:
    """The first measured batch at which sampled exact match is at a threshold; `None` if it never is."""
    return next((point["batch"] for point in run["curve"] if point["exact_match"] >= threshold), None)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval by Student's t; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(
        len(values)
    )


def paired(runs: dict[int, dict], baseline: dict[int, dict]) -> tuple[float, float] | None:
    """Difference of areas by seed, over the seeds that both have; `None` if there is none."""
    both = sorted(runs.keys() & baseline.keys())
    return interval([area(runs[seed]) - area(baseline[seed]) for seed in both]) if both else None


def total(run: dict, name: str) -> int:
    """Sum of a count over the batches of a run."""
    return sum(batch[name] for batch in run["batches"])


def table(cells: dict[str, dict[int, dict]], threshold: float) -> list[str]:
    """Markdown of one task."""
    heads = ["cell", "seeds", "area", *[f"Δ {name}" for name in BASELINES], "final", f"batches to {threshold:g}"]
    heads += ["dead groups", "generated tokens", "scored tokens", "CPU s"]
    return [_line(heads), _line(["---"] * len(heads)), *[_row(name, cells, threshold) for name in cells]]


def _row(name: str, cells: dict[str, dict[int, dict]], threshold: float) -> str:
    runs = list(cells[name].values())
    gaps = [_gap(cells, name, baseline) for baseline in BASELINES]
    reached = [found for run in runs if (found := batches_to(run, threshold)) is not None]
    steps = (
        f"{statistics.median(reached):g} ({len(reached)} of {len(runs)})" if reached else f"never (0 of {len(runs)})"
    )
    dead = statistics.fmean(batch["dead_groups"] for run in runs for batch in run["batches"])
    generated, scored = (
        statistics.fmean(total(run, column) for run in runs) for column in ("generated_tokens", "scored_tokens")
    )
    seconds = statistics.fmean(run["seconds"]["processor"] for run in runs)
    shown = [name, str(len(runs)), _said(interval(list(map(area, runs)))), *gaps]
    shown += [_said(interval(list(map(final, runs)))), steps, f"{dead:.0%}"]
    return _line([*shown, f"{generated:,.0f}", f"{scored:,.0f}", f"{seconds:.0f}"])


def _gap(cells: dict[str, dict[int, dict]], name: str, baseline: str) -> str:
    found = paired(cells[name], cells[baseline]) if baseline in cells and name != baseline else None
    return "–" if found is None else _said(found, sign="+")


def _said(found: tuple[float, float], sign: str = "") -> str:
    mean, half = found
    return f"{mean:{sign}.3f}" + ("" if math.isinf(half) else f" ± {half:.3f}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--threshold", type=float, default=0.5)
    options = parser.parse_args(args)
    for task, cells in load(options.folder).items():
        print("\n".join([f"### {task}", "", *table(cells, options.threshold), ""]))


if __name__ == "__main__":
    main()
