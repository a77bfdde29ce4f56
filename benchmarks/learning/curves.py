"""One picture a task: curves of sampled exact match with bands of 95 % over seeds, and differences to the better GRPO with their intervals.

python benchmarks/learning/curves.py [FOLDER] [--cells NAME …] [--out FOLDER]
"""

import argparse
from pathlib import Path

import matplotlib
from tables import HERE, Cells, better_baseline, interval, load, relative_gain

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DRAWN = (
    "grpo_token",
    "grpo_turn",
    "a2tgpo",
    "a2tgpo_raw",
    "outcome_control",
    "outcome_of_rollouts",
    "belief_of_rollouts",
)
"""Cells whose curves are drawn; all have a difference."""


def bands(runs: list[dict]) -> tuple[list[int], list[float], list[float]]:
    """Batches that all runs were measured at, the mean there, and half of its interval."""
    curves = [{point["batch"]: point["exact_match"] for point in run["curve"]} for run in runs]
    batches = sorted(set.intersection(*map(set, curves)))
    found = [interval([curve[batch] for curve in curves]) for batch in batches]
    return batches, [mean for mean, _ in found], [half for _, half in found]


def draw(task: str, cells: Cells, path: Path, drawn: tuple[str, ...] = DRAWN) -> None:
    """The picture of one task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=(3, 2))
    _curves(left, {name: cells[name] for name in drawn if name in cells})
    _differences(right, cells)
    figure.suptitle(task)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axes: plt.Axes, cells: Cells) -> None:
    for name, runs in cells.items():
        batches, means, halves = bands(list(runs.values()))
        (line,) = axes.plot(batches, means, label=f"{name} ({len(runs)} seeds)")
        if len(runs) > 1:
            low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
            axes.fill_between(batches, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="batch", ylabel="sampled exact match, held out", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)


def _differences(axes: plt.Axes, cells: Cells) -> None:
    gains = {name: gain for name in cells if (gain := relative_gain(cells, name)) is not None}
    places = range(len(gains), 0, -1)
    for place, (mean, half) in zip(places, gains.values(), strict=True):
        axes.errorbar(100 * mean, place, xerr=100 * half, fmt="o", color="C0", capsize=3, markersize=4)
    axes.set_yticks(list(places), list(gains), fontsize=8)
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set(xlabel=f"area over that of {better_baseline(cells)}, %, with 95 % intervals")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--cells", nargs="*", default=DRAWN, help="whose curves are drawn")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(args)
    options.out.mkdir(parents=True, exist_ok=True)
    for task, cells in load(options.folder).items():
        draw(task, cells, options.out / f"{task}.png", tuple(options.cells))


if __name__ == "__main__":
    main()
