"""Collects the learning curves that notebook 4 draws from the runs in benchmarks/learning/results; the package has them as JSON.

python scripts/build_curves.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "learning" / "results"
FILE = ROOT / "src" / "a2tgpo_trl" / "assets" / "learning_curves.json"
TASKS = ("2_hops", "3_hops_scarce", "4_hops", "real_facts")
METHODS = ("grpo_turn", "a2tgpo")


def curves() -> dict[str, dict[str, dict]]:
    """By task and method: `batch`, those after which was measured, and `exact_match` on held-out questions, a list for each seed."""
    return {task: {method: _of_runs(RESULTS / task / method) for method in METHODS} for task in TASKS}


def _of_runs(folder: Path) -> dict[str, list]:
    runs = sorted((json.loads(file.read_text()) for file in folder.glob("*.json")), key=lambda run: run["seed"])
    (batches,) = {tuple(point["batch"] for point in run["curve"]) for run in runs}
    measured = [[round(point["exact_match"], 4) for point in run["curve"]] for run in runs]
    return {"batch": list(batches), "exact_match": measured}


if __name__ == "__main__":
    FILE.write_text(json.dumps(curves(), separators=(",", ":")) + "\n")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1e3:.0f} kB")
