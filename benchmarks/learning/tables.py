"""Tables of the runs of a grid, as Markdown.

python benchmarks/learning/tables.py [FOLDER] [--threshold 0.5] > table.md
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from scipy.stats import t

HERE = Path(__file__).parent
BASELINES = ("grpo_token", "grpo_turn")
CONTROL = "outcome_control"
SEEDS, SEEDS_OF = 12, {"demo": 5}
"""Of a finished cell, and by task where they are others."""
WIN = 0.1
"""Share of the better baseline's area that a difference needs, beside an interval above zero."""

Cells = dict[str, dict[int, dict]]
Runs = dict[str, Cells]
Interval = tuple[float, float]
"""Mean, and half of the 95 % interval."""


def load(folder: Path) -> Runs:
    """The runs below a folder: task → cell → seed → run; the baselines come first."""
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/*/*.json"), key=lambda path: (path.parts[-2] not in BASELINES, path)):
        run = json.loads(path.read_text())
        runs[run["task"]][run["cell"]][run["seed"]] = run
    return dict(sorted(runs.items()))


def area(run: dict) -> float:
    """Mean of the curve of sampled exact match over the batches of the run, by the trapezoidal rule."""
    return _mean([point["batch"] for point in run["curve"]], _heights(run))


def _heights(run: dict) -> list[float]:
    return [point["exact_match"] for point in run["curve"]]


def _mean(places: Sequence[float], heights: Sequence[float]) -> float:
    between = pairwise(zip(places, heights, strict=True))
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in between) / (places[-1] - places[0])


def area_to(run: dict, tokens: float) -> float:
    """Mean of the curve over generated tokens, from none to `tokens`."""
    written = [0, *accumulate(batch["generated_tokens"] for batch in run["batches"])]
    points = [(written[point["batch"]], point["exact_match"]) for point in run["curve"]]
    tokens = min(tokens, points[-1][0])  # of what was generated after the last evaluation nothing is known
    inside = [point for point in points if point[0] < tokens]
    (a, x), (b, y) = next(pair for pair in pairwise(points) if pair[1][0] >= tokens)
    inside.append((tokens, x + (y - x) * (tokens - a) / (b - a)))
    return _mean(*zip(*inside, strict=True))


def final(run: dict) -> float:
    """The last sampled exact match."""
    return run["curve"][-1]["exact_match"]


def greedy(run: dict) -> float:
    """Exact match of greedy answers after the last batch."""
    return run["greedy_exact_match"]


def _with_greedy(runs: dict[int, dict]) -> dict[int, dict]:
    """Those of the runs that measured greedy answers."""
    return {seed: run for seed, run in runs.items() if "greedy_exact_match" in run}


def batches_to(run: dict, threshold: float) -> int | None:
    """The first measured batch at which sampled exact match is at a threshold; `None` if it never is."""
    return next((point["batch"] for point in run["curve"] if point["exact_match"] >= threshold), None)


def total(run: dict, name: str) -> int:
    """Sum of a count over the batches of a run."""
    return sum(batch[name] for batch in run["batches"])


def interval(values: Sequence[float]) -> Interval:
    """Mean and half of its 95 % interval by Student's t; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(
        len(values)
    )


def difference(one: dict, other: dict) -> float:
    """Of areas over the batches."""
    return area(one) - area(other)


def difference_of_greedy(one: dict, other: dict) -> float:
    """Of greedy exact match after the last batch."""
    return greedy(one) - greedy(other)


def difference_at_equal_tokens(one: dict, other: dict) -> float:
    """Of areas up to as many generated tokens as the thriftier of both runs has."""
    tokens = min(total(one, "generated_tokens"), total(other, "generated_tokens"))
    return area_to(one, tokens) - area_to(other, tokens)


def paired(
    runs: dict[int, dict], baseline: dict[int, dict], compare: Callable[[dict, dict], float] = difference
) -> Interval | None:
    """Differences by seed, over the seeds that both have; `None` if there is none."""
    both = sorted(runs.keys() & baseline.keys())
    return interval([compare(runs[seed], baseline[seed]) for seed in both]) if both else None


def better_baseline(cells: Cells) -> str | None:
    """The one of the baselines with the larger mean area, over the seeds that all of them have; `None` if there is none."""
    there = [name for name in BASELINES if name in cells]
    seeds = set.intersection(*(set(cells[name]) for name in there)) if there else set()
    return max(there, key=lambda name: _level(cells[name], seeds)) if seeds else None


def _level(runs: dict[int, dict], seeds: Iterable[int]) -> float:
    return statistics.fmean(area(runs[seed]) for seed in seeds)


def relative_gain(cells: Cells, name: str) -> Interval | None:
    """The difference of a cell's area to the better baseline's, as a share of that area, over the seeds that both have."""
    if (baseline := better_baseline(cells)) in (None, name) or name not in cells:
        return None
    found = paired(cells[name], cells[baseline])
    level = found and _level(cells[baseline], cells[name].keys() & cells[baseline].keys())
    return found and (found[0] / level, found[1] / level)


def verdict(gain: Interval) -> str:
    """`win`, `better`, `worse` or `no difference`, of a difference with its interval."""
    mean, half = gain
    if mean - half > 0:
        return "win" if mean >= WIN else "better"
    return "worse" if mean + half < 0 else "no difference"


def overview(runs: Runs) -> list[str]:
    """Markdown: cells × tasks, differences of areas to the better baseline in per cent of it."""
    names = list(dict.fromkeys(name for cells in runs.values() for name in cells))
    lines = [_line(["cell", *runs]), _line(["---"] * (len(runs) + 1))]
    lines.append(_line(["*the better GRPO*", *[f"*{better_baseline(cells)}*" for cells in runs.values()]]))
    return lines + [_line([name, *[_in_overview(runs, task, name) for task in runs]]) for name in names]


def _in_overview(runs: Runs, task: str, name: str) -> str:
    if (gain := relative_gain(runs[task], name)) is None:
        return "–"
    if (number := len(runs[task][name])) < (seeds := SEEDS_OF.get(task, SEEDS)):
        return f"{gain[0]:+.0%}, {number} of {seeds} seeds"
    marks = {"win": "**{}** ▲", "better": "**{}**", "worse": "*{}* ▽", "no difference": "{}"}
    return marks[verdict(gain)].format(f"{gain[0]:+.0%} ± {gain[1]:.0%}")


def results(cells: Cells, threshold: float) -> list[str]:
    """Markdown of one task: what was learned."""
    heads = ["cell", "seeds", "area", *[f"Δ {name}" for name in BASELINES], f"Δ {BASELINES[1]} at equal tokens"]
    heads += [f"Δ {CONTROL}", "final", "greedy", f"Δ {BASELINES[1]}, greedy", f"batches to {threshold:g}"]
    return _table(heads, ([name, *_result(cells, name, threshold)] for name in cells))


def _result(cells: Cells, name: str, threshold: float) -> Iterator[str]:
    runs = list(cells[name].values())
    yield str(len(runs))
    yield _said(interval([area(run) for run in runs]))
    for baseline in BASELINES:
        yield _gap(cells, name, baseline, difference)
    yield _gap(cells, name, BASELINES[1], difference_at_equal_tokens)
    yield _gap(cells, name, CONTROL, difference)
    yield _said(interval([final(run) for run in runs]))
    answered = _with_greedy(cells[name])
    yield _said(interval([greedy(run) for run in answered.values()])) if answered else "–"
    yield _gap({cell: _with_greedy(runs) for cell, runs in cells.items()}, name, BASELINES[1], difference_of_greedy)
    reached = [math.inf if (found := batches_to(run, threshold)) is None else found for run in runs]
    middle, number = statistics.median(reached), sum(map(math.isfinite, reached))
    yield f"{f'{middle:g}' if math.isfinite(middle) else 'never'} ({number} of {len(runs)})"


def _gap(cells: Cells, name: str, baseline: str, compare: Callable[[dict, dict], float]) -> str:
    found = paired(cells[name], cells[baseline], compare) if baseline in cells and name != baseline else None
    return "–" if found is None else _said(found, sign="+")


DIAGNOSTICS = {
    "dead_groups": "dead groups",
    "turn_part_mixed": "turn part, mixed groups",
    "turn_part_dead": "turn part, dead groups",
    "gain_outcome_correlation": "correlation of gain and outcome",
    "entropy": "entropy",
    "clipped": "clipped",
}
DRIFTS = {"belief_at_prompt": "belief at the prompt", "turns": "turns"}


def diagnostics(cells: Cells) -> list[str]:
    """Markdown of one task: what runs cost, means over the batches of all runs, and of some the first and the last batch."""
    heads = ["cell", "generated tokens", "scored tokens", "CPU s", *DIAGNOSTICS.values(), *DRIFTS.values()]
    return _table(heads, ([name, *_why(cells[name])] for name in cells))


def _why(runs: dict[int, dict]) -> Iterator[str]:
    for column in ("generated_tokens", "scored_tokens"):
        yield f"{statistics.fmean(total(run, column) for run in runs.values()):,.0f}"
    yield f"{statistics.fmean(run['seconds']['processor'] for run in runs.values()):.0f}"
    for name in DIAGNOSTICS:
        yield _average(batch.get(name) for run in runs.values() for batch in run["batches"])
    for name in DRIFTS:
        ends = [_average(run["batches"][place].get(name) for run in runs.values()) for place in (0, -1)]
        yield " → ".join(ends) if "–" not in ends else "–"


def _average(values: Iterator[float | None]) -> str:
    measured = [value for value in values if value is not None]
    return f"{statistics.fmean(measured):.2f}" if measured else "–"


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *map(_line, rows)]


def _said(found: Interval, sign: str = "") -> str:
    mean, half = found
    return f"{mean:{sign}.3f}" + ("" if math.isinf(half) else f" ± {half:.3f}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "results")
    parser.add_argument("--threshold", type=float, default=0.5)
    options = parser.parse_args(args)
    runs = load(options.folder)
    print("\n".join([*overview(runs), ""]))
    for task, cells in runs.items():
        print("\n".join([f"### {task}", "", *results(cells, options.threshold), "", *diagnostics(cells), ""]))


if __name__ == "__main__":
    main()
