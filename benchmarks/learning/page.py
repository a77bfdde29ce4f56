"""Writes what the runs say into `docs/results.md`, between its two marks, with a picture of each task beside it.

python benchmarks/learning/page.py [--runs FOLDER] [--page FILE] [--threshold 0.5]
"""

import argparse
import re
from pathlib import Path

from curves import draw
from tables import HERE, Runs, diagnostics, load, overview, results

PAGE = HERE.parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- written by benchmarks/learning/page.py -->", "<!-- end -->"


def content(runs: Runs, threshold: float, pictures: str) -> str:
    """Markdown of all tasks: the overview, then a picture and two tables of each."""
    lines = ["### All tasks", "", *overview(runs)]
    for task, cells in runs.items():
        lines += ["", f"### {task}", "", f"![{task}]({pictures}/{task}.png)", ""]
        lines += [*results(cells, threshold), "", *diagnostics(cells)]
    return "\n".join(lines)


def replaced(page: str, written: str) -> str:
    """
    The page with another content between its marks.

    Raises:
        ValueError: If it does not have both once.
    """
    marks = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    page, number = re.subn(marks, lambda _: f"{BEGIN}\n\n{written}\n\n{END}", page, flags=re.S)
    if number != 1:
        raise ValueError(f"The page must have {BEGIN!r} and after it {END!r}, to write between them.")
    return page


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--threshold", type=float, default=0.5)
    options = parser.parse_args(args)
    runs, pictures = load(options.runs), options.page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for task, cells in runs.items():
        draw(task, cells, pictures / f"{task}.png")
    options.page.write_text(replaced(options.page.read_text(), content(runs, options.threshold, pictures.name)))


if __name__ == "__main__":
    main()
