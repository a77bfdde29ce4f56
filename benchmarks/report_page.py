"""
Claim: the report page stays usable at 10,000 rollouts: it is small enough to send, and opens in a second or two.

Writes synthetic runs of 100, 1,000 and 10,000 rollouts with the turn records that training writes (system prompt, one to four turns,
an observation of --words words after each search), builds the page of each, and opens it in a fresh headless Chromium from disk.
Measured are the size of the records and of the page, the seconds from records to page, and in the browser those until the
overview stands with its charts in view, until a rollout is open in the list, and until the first search through all texts has
its result, which unpacks them all. Medians of --rounds rounds, taken in turn.
    python benchmarks/report_page.py

Writes the figures as JSON beside itself.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measuring import report
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import synthetic
from a2tgpo_trl.records import FOLDER
from a2tgpo_trl.report import Measures, read_runs, write_page

CLAIM = "the report page stays usable at 10,000 rollouts"
SIZES = (100, 1_000, 10_000)
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pages built and opened of each size")
    parser.add_argument("--words", type=int, default=200, help="words of each observation")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        runs = {size: write_run(folder / str(size), size, options.words) for size in SIZES}
        seconds: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
        browser = playwright.chromium.launch(executable_path=options.chromium, args=CHROMIUM)
        version = browser.version
        build(runs[SIZES[0]])  # imports and caches
        for number in range(options.rounds):
            for size in SIZES:
                start = time.perf_counter()
                page = build(runs[size])
                built = time.perf_counter() - start
                seconds[size].append({"build": built, **open_page(browser, page)})
                print(f"round {number + 1}, {size} rollouts: {seconds[size][-1]}", flush=True)
        figures = {
            f"{size:,} rollouts": {
                "records_mb": megabytes(*(runs[size] / FOLDER).iterdir()),
                "page_mb": megabytes(runs[size] / "report.html"),
                **{f"{what}_s": median(seconds[size], what) for what in seconds[size][0]},
            }
            for size in SIZES
        }
        browser.close()
    options.chromium = version
    report(__file__, CLAIM, options, figures)


def write_run(folder: Path, size: int, words: int) -> Path:
    batch = min(size, 200)
    return synthetic.write_run(folder, rollouts=size, group_size=10, batch_size=batch, words=words)


def build(folder: Path) -> Path:
    runs = read_runs([folder])
    write_page(runs, [Measures.of(run) for run in runs], folder / "report.html")
    return folder / "report.html"


def open_page(browser: Browser, file: Path) -> dict[str, float]:
    """Seconds until there is something to see and to do."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_function("() => document.body.dataset.ready && drawn.size > 0")
    seconds = {"load": time.perf_counter() - start}
    start = time.perf_counter()
    page.keyboard.press("r")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail article")
    seconds["open_rollout"] = time.perf_counter() - start
    start = time.perf_counter()
    page.fill("#filter [name=text]", "did not answer")
    page.wait_for_function(
        "() => document.getElementById('list').ariaBusy === 'false' && list.found.length < data.size"
    )
    seconds["first_search"] = time.perf_counter() - start
    context.close()
    return seconds


def megabytes(*files: Path) -> float:
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


def median(rounds: list[dict[str, float]], what: str) -> float:
    return round(statistics.median(seconds[what] for seconds in rounds), 2)


if __name__ == "__main__":
    main()
