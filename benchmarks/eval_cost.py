"""
Claim: `a2tgpo eval` takes no longer than a plain loop over `generate`, and gives the same answers.

The demo's held-out questions, its adapter, its search, greedy. The plain loop is what one would write in an afternoon:
batches of the same size, `generate` with stop strings, the search between two turns, and the whole text read again for the
next turn. Both load the model, and score with the same function. One round is both of them, in turn.

    python benchmarks/eval_cost.py --model outputs/demo/seed-0/training/checkpoint-32

Writes the figures as JSON beside itself.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
from pathlib import Path

import torch
from measuring import in_turn, ratio, report
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from a2tgpo_trl.cli.main import main as a2tgpo
from a2tgpo_trl.data import load_atlas, split_by_entity, to_dataset
from a2tgpo_trl.demo.warmup import PROMPT_TEMPLATE
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.search import BM25Search

BATCH_SIZE, MAX_TOKENS, MAX_SEARCHES = 8, 256, 4
STOPS = ["</search>", "</answer>"]


def plain(folder: Path, rows: list[dict], search) -> float:
    """Exact match of a loop over `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).merge_and_unload().eval()
    completions = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        texts, going = [""] * len(batch), list(range(len(batch)))
        for _ in range(MAX_SEARCHES + 1):
            inputs = tokenizer([batch[i]["prompt"] + texts[i] for i in going], return_tensors="pt", padding=True)
            with torch.no_grad():
                output = model.generate(
                    **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, stop_strings=STOPS, tokenizer=tokenizer
                )
            turns = tokenizer.batch_decode(output[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)
            calling = []
            for i, turn in zip(going, turns, strict=True):
                texts[i] += turn
                if call := re.search(r"<search>(.*?)</search>\s*$", turn, flags=re.DOTALL):
                    texts[i] += f"\n<result>\n{search(call[1])}\n</result>\n"
                    calling.append(i)
            going = calling
            if not going:
                break
        completions += texts
    return score(completions, rows)


def score(completions: list[str], rows: list[dict]) -> float:
    found = exact_match_reward(completions=completions, answer=[row["answer"] for row in rows])
    return sum(found) / len(found)


def ours(folder: Path, count: int) -> float:
    """Exact match that the command finds."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        output = Path(out) / "eval.jsonl"
        options = f"--datasets atlas --limit {count} --tools search --search_index atlas --max_completion_length {MAX_TOKENS}"
        options += (
            f" --max_tool_calling_iterations {MAX_SEARCHES} --per_device_eval_batch_size {BATCH_SIZE} --report_to none"
        )
        options += " --search_top_k 1 --search_titles false"
        words = [*options.split(), "--model_name_or_path", str(folder), "--output", str(output)]
        status = a2tgpo(["eval", *words, "--prompt_template", PROMPT_TEMPLATE])
        assert status == 0, "the command failed"
        answers = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    return sum(answer["exact_match"][0] for answer in answers) / len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=Path("outputs/demo/seed-0/training/checkpoint-32"), help="the demo's adapter"
    )
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    atlas = load_atlas()
    rows = list(to_dataset(split_by_entity(atlas.questions)[1], PROMPT_TEMPLATE))[: options.questions]
    search = BM25Search(atlas.passages, top_k=1, show_titles=False).search
    found = {}
    methods = {
        "plain": lambda: found.update(plain=plain(options.model, rows, search)),
        "ours": lambda: found.update(ours=ours(options.model, options.questions)),
    }
    seconds = in_turn(methods, options.rounds)
    report(
        __file__,
        "a2tgpo eval takes no longer than a plain loop over generate",
        options,
        {"exact_match": found, "ours_over_plain": ratio(seconds, "ours", "plain"), "seconds": seconds},
    )


if __name__ == "__main__":
    main()
