"""
Claim: from `git clone` to the first learning curve it is three commands, and to a run on one's own JSONL one more.

Clones this repository, as it is committed, into an empty folder and does what the README says, nothing else. Minutes depend on
the machine and on how far the package index is; what is claimed is the number of commands, and that each of them ends well.

    python benchmarks/first_hour.py

Writes the figures as JSON beside itself.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from measuring import report

ROOT = Path(__file__).parents[1]
OWN = [
    {"question": "In which country is the city of Lyon?", "answer": "France"},
    {"question": "In which country is the city of Osaka?", "answer": "Japan"},
    {"question": "In which country is the city of Porto?", "answer": ["Portugal"]},
    {"question": "In which country is the city of Graz?", "answer": "Austria"},
] * 2
COMMANDS = {
    "clone": "git clone --quiet {root} {folder}",
    "install": "make .venv/.installed",
    "first learning curve": "make demo",
    "own JSONL": ".venv/bin/a2tgpo train --dataset own.jsonl --model_name_or_path outputs/demo/seed-0/warm-start "
    "--tools search --search_index atlas --search_titles false --prompt_template 'Question: {{question}}\n' "
    "--answer_template '<answer> {{answer}}</answer>' "
    "--max_steps 4 --num_generations 4 --per_device_train_batch_size 4 --max_completion_length 200 --logging_steps 1 "
    "--report_to none --output_dir outputs/own",
}
LEAVES = {
    "install": ".venv/.installed",
    "first learning curve": "outputs/demo/seed-0/training/learning_curve.png",
    "own JSONL": "outputs/own/adapter_model.safetensors",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to clone to, and keep it; default: a temporary folder")
    options = parser.parse_args()
    minutes = {}
    with tempfile.TemporaryDirectory() as place:
        place = options.folder.resolve() if options.folder else place
        folder = Path(place) / "a2tgpo-trl"
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            where = place if name == "clone" else folder
            subprocess.run(command.format(root=ROOT, folder=folder), shell=True, cwd=where, check=True)
            minutes[name] = round((time.perf_counter() - start) / 60, 2)
            assert name not in LEAVES or (folder / LEAVES[name]).exists(), f"{name} left no {LEAVES[name]}"
            if name == "install":
                (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OWN))
        log = json.loads((folder / "outputs/own/checkpoint-4/trainer_state.json").read_text())["log_history"]
        result = json.loads((folder / "outputs/demo/seed-0/training/result.json").read_text())
    report(
        __file__,
        "three commands to the first learning curve, one more to a run on one's own JSONL",
        options,
        {
            "minutes": minutes,
            "own_rewards": [row["reward"] for row in log if "reward" in row],
            "demo": {name: result[name] for name in ("before", "after")},
        },
    )


if __name__ == "__main__":
    main()
