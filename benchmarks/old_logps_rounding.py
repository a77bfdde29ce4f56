"""
Question: may the old log-probabilities come from a forward of another form than the loss makes?

The log-probabilities of traces of the demo by the demo's model, computed as the loss does (rows padded to the longest), and in
other forms: more columns of padding, half as many rows, each row alone. What a form changes in the mean over a turn of 30
tokens is noise in the turn-level ratio of the first update; it is held against the paper's clip range, 3e-3 to 4e-3. This is
why `A2TGPOTrainer` leaves TRL's forward as it is and lets beliefs share it.

    python benchmarks/old_logps_rounding.py

Writes the figures as JSON beside itself.
"""

import argparse
import random
from pathlib import Path

import torch
from measuring import report
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.demo.model import load_tokenizer, prepare_model

TURN = 30


def log_probs(model, rows: list[list[int]], autocast: bool, left: int = 0, right: int = 0) -> list[torch.Tensor]:
    width = max(map(len, rows)) + right
    ids = torch.tensor([[0] * left + row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[0] * left + [1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), fused_lm_head=True
        ).log_probs
    return [outputs[i, left : left + len(row) - 1].float() for i, row in enumerate(rows)]


def turn_means(logps: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([row[: len(row) // TURN * TURN].view(-1, TURN).mean(1) for row in logps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(prepare_model(options.model))
    pick, passages = random.Random(0), [passage["text"] for passage in load_atlas().passages]
    rows = [tokenizer(" ".join(pick.sample(passages, 12 + 2 * i)))["input_ids"] for i in range(options.rows)]
    half = len(rows) // 2
    figures = {}
    for name, dtype, autocast in (
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("float32 weights, bfloat16 autocast", torch.float32, True),
    ):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
        add_fused_lm_head(model)
        expected = turn_means(log_probs(model, rows, autocast))
        forms = {
            "the same form again": log_probs(model, rows, autocast),
            "64 more columns on the right": log_probs(model, rows, autocast, right=64),
            "7 more columns on the left": log_probs(model, rows, autocast, left=7),
            "half as many rows": log_probs(model, rows[:half], autocast) + log_probs(model, rows[half:], autocast),
            "each row alone": [log_probs(model, [row], autocast)[0] for row in rows],
        }
        noise = {form: (turn_means(logps) - expected).abs() for form, logps in forms.items()}
        figures[name] = {
            form: {
                "mean": values.mean().item(),
                "max": values.max().item(),
                "above 3e-3": (values > 3e-3).float().mean().item(),
            }
            for form, values in noise.items()
        }
    report(__file__, "noise of a turn's mean log-probability from the form of the batch", options, figures)


if __name__ == "__main__":
    main()
