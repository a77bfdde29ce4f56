"""Curves of sampled exact match with bands of 95 % over seeds, one picture a task.

python benchmarks/learning/curves.py [FOLDER] [--cells NAME …] [--out FOLDER]
"""

import argparse
from pathlib import Path

import matplotlib
from tables import HERE, interval, load

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def bands(runs: list[dict]) -> tuple[list[int], list[float], list[float]]:
    """Batches that all runs were measured at, the mean there, and half of its interval."""
    curves = [{point["batch"]: point["exact_match"] for point in run["curve"]} for run in runs]
    batches = sorted(set.intersection(*map(set, curves)))
    found = [interval([curve[batch] for curve in curves]) for batch in batches]
    return batches, [mean for mean, _ in found], [half for _, half in found]


def draw(task: str, cells: dict[str, dict[int, dict]], path: Path) -> None:
    """One picture of a task."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, runs in cells.items():
        batches, means, halves = bands(list(runs.values()))
        (line,) = axes.plot(batches, means, label=f"{name} ({len(runs)})")
        if len(runs) > 1:
            low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
            axes.fill_between(batches, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(title=task, xlabel="batch", ylabel="sampled exact match, held out", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--cells", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(args)
    options.out.mkdir(parents=True, exist_ok=True)
    for task, cells in load(options.folder).items():
        chosen = {name: runs for name, runs in cells.items() if options.cells is None or name in options.cells}
        draw(task, chosen, options.out / f"{task}.png")


if __name__ == "__main__":
    main()
