"""Runs a grid of cells × tasks × seeds, two at a time in the background; a run whose file is there is left out.

python benchmarks/learning/grid.py [grid.yaml] [--out FOLDER] [--workers 2] [--list]
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import yaml

HERE = Path(__file__).parent
SECTIONS = ("options", "sizes", "tasks", "cells", "experiments")


class GridError(ValueError):
    """A grid file that cannot be run."""


@dataclass(frozen=True)
class Planned:
    """
    A run and its place.

    Attributes:
        experiment (`int`): Its place among the experiments of the grid.
        task (`str`), cell (`str`), seed (`int`): Their names in the grid, and the seed.
        settings (`dict`): Of the run: `task`, `size`, `method`, `options`, and `first_world` if the grid has it.
    """

    experiment: int
    task: str
    cell: str
    seed: int
    settings: dict

    def path(self, folder: Path) -> Path:
        return folder / self.task / self.cell / f"{self.seed}.json"


def read_grid(path: Path) -> list[Planned]:
    """
    The runs of a grid file: its experiments in their order, in each all cells of a seed before the next seed, so that what is done
    is always comparable.

    Args:
        path (`Path`): YAML with the sections `options`, `sizes`, `tasks`, `cells` and `experiments`, and `first_world` if seeds shall not
            take the worlds 1 to 3.

    Returns:
        `list[Planned]`: each run once.

    Raises:
        GridError: If a section is missing, or a name is none of the grid's.
    """
    grid = yaml.safe_load(path.read_text())
    if not isinstance(grid, dict) or (missing := [name for name in SECTIONS if name not in grid]):
        lacks = missing[0] if isinstance(grid, dict) else SECTIONS[0]
        raise GridError(f"{path}: the section {lacks!r} is missing. A grid has {', '.join(SECTIONS)}.")
    planned = {}
    for place, experiment in enumerate(grid["experiments"]):
        first, last = experiment["seeds"]
        for seed, task, cell in product(range(first, last + 1), experiment["tasks"], experiment["cells"]):
            settings = _settings(path, grid, task, cell)
            planned.setdefault((task, cell, seed), Planned(place, task, cell, seed, settings))
    return list(planned.values())


def _settings(path: Path, grid: dict, task: str, cell: str) -> dict:
    asked = dict(_named(path, grid, "tasks", task))
    size = _named(path, grid, "sizes", asked.pop("size", None))
    chosen = _named(path, grid, "cells", cell)
    if unknown := sorted(chosen.keys() - {"method", "options"}):
        raise GridError(f"{path}: cell {cell!r} has {unknown[0]!r}. A cell has a method and options.")
    options = grid["options"] | chosen.get("options", {})
    worlds = {"first_world": grid["first_world"]} if "first_world" in grid else {}
    return {"task": asked, "size": size, "method": chosen["method"], "options": options} | worlds


def _named(path: Path, grid: dict, section: str, name: str) -> dict:
    if name not in grid[section]:
        raise GridError(f"{path}: {name!r} is not in the section {section!r}. There are {', '.join(grid[section])}.")
    return grid[section][name]


def _begin() -> None:
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    import torch

    torch.set_num_threads(1)


def execute(job: tuple[Planned, Path]) -> tuple[Planned, float, str]:
    """Run, and write the file at once or not at all."""
    planned, path = job
    from run import Run, Size
    from tasks import make_task

    settings = planned.settings
    made = {"task": make_task(settings["task"]), "size": Size(**settings["size"])}
    start = time.monotonic()
    try:
        result = Run(seed=planned.seed, **(settings | made)).execute()
    except Exception as error:  # one cell that cannot run leaves the others
        return planned, time.monotonic() - start, f"failed: {type(error).__name__}: {error}"
    write_result(planned, path, result)
    area = sum(point["exact_match"] for point in result["curve"]) / len(result["curve"])
    return planned, time.monotonic() - start, f"mean exact match {area:.3f}"


def write_result(planned: Planned, path: Path, result: dict) -> None:
    """What was measured, with what was planned: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    about = {"cell": planned.cell, "task": planned.task, "seed": planned.seed, "settings": planned.settings}
    partial.write_text(json.dumps(about | result) + "\n")
    partial.replace(path)


def check_done(planned: list[Planned], folder: Path) -> None:
    """
    Refuse to mix runs of one name and other settings.

    Raises:
        GridError: If a run that is done had other settings than the grid says.
    """
    for run in planned:
        path = run.path(folder)
        had = json.loads(path.read_text()).get("settings", run.settings) if path.exists() else run.settings
        if had != run.settings:
            raise GridError(
                f"{path} was run with {had}, and the grid says {run.settings}. Rename the cell, or move the file away."
            )


def run_all(planned: list[Planned], folder: Path, workers: int) -> int:
    """Run what has no file yet; the number of runs that failed."""
    left = [run for run in planned if not run.path(folder).exists()]
    print(f"{len(planned)} runs, {len(planned) - len(left)} of them done", flush=True)
    number = failures = 0
    with multiprocessing.get_context("spawn").Pool(workers, _begin) as pool:
        for _, runs in groupby(left, key=lambda run: run.experiment):
            jobs = [(run, run.path(folder)) for run in runs]
            pool.map(prepare, warm_starts([run for run, _ in jobs]), chunksize=1)  # before workers would do so twice
            for run, seconds, said in pool.imap_unordered(execute, jobs):
                number, failures = number + 1, failures + said.startswith("failed")
                done = f"{number}/{len(left)} {run.task} {run.cell} seed {run.seed}"
                print(f"{done}: {said} ({seconds:.0f} s)", flush=True)
    return failures


def warm_starts(planned: list[Planned]) -> list[tuple[dict, int]]:
    """Settings of tasks, and worlds, one for each warm start that runs need."""
    from run import world_of
    from tasks import make_task

    needed = {}
    for run in planned:
        task, world = run.settings["task"], world_of(run.seed, run.settings.get("first_world", 1))
        made = make_task(task)
        needed[type(made).__name__, made.warm_start, world] = (task, world)
    return [needed[key] for key in sorted(needed)]


def prepare(needed: tuple[dict, int]) -> None:
    """Train a warm start, unless it is there."""
    from tasks import make_task
    from warm_start import warm_start

    task, world = needed
    warm_start(make_task(task), world)


def parse(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, nargs="?", default=HERE / "grid.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="say what would run")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    options = parse(args)
    try:
        planned = read_grid(options.grid)
        check_done(planned, options.out)
    except GridError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        for run in planned:
            print(run.path(options.out), "done" if run.path(options.out).exists() else "")
        return 0
    try:
        return min(run_all(planned, options.out, options.workers), 1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
