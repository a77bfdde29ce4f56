"""
Claim: where the old log-probabilities are computed anyway, information gain adds at most 15 % to that forward.

TRL's forward over a generation batch of a model of the demo's shape (135 M parameters, random), as `A2TGPOTrainer` makes it:
alone, and with the beliefs that ride on it. Two settings: completions of 2,000 tokens with eight tool turns, and such as the
demo's, 100 to 200 tokens with two, padded to the longest. Memory is the peak of the process above what it held
before, for one completion of 8,000 tokens with eight tool turns.

    python benchmarks/riding_probes.py

Writes the figures as JSON beside itself.
"""

import argparse
import random
import tempfile
from functools import partial

import torch
from datasets import Dataset
from measuring import demo_shape, in_turn, peak_megabytes, ratio, report
from scripted import make_tokenizer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.replaced import replaced

ANSWER = "Paris, or so"
"""Some ten tokens in the template, as an answer of two words takes with a real vocabulary."""


def make_trainer(dtype: torch.dtype, chunk: int, num_rows: int) -> A2TGPOTrainer:
    return A2TGPOTrainer(
        model=demo_shape(dtype),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=A2TGPOConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=chunk,
            steps_per_generation=num_rows // chunk,
            num_generations=2,
            answer_template="\n{answer}\n",
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "?", "answer": ANSWER}]),
        processing_class=make_tokenizer(),
    )


def make_batch(trainer: A2TGPOTrainer, lengths: list[tuple[int, int]], turns: int) -> tuple:
    """Random tokens, and masks in which each completion has so many tool turns and an answer of ten tokens."""
    generator = torch.Generator().manual_seed(0)
    width = max(prompt for prompt, _ in lengths), max(completion for _, completion in lengths)
    ids = torch.randint(5, 49152, (len(lengths), sum(width)), generator=generator)
    mask = torch.zeros_like(ids)
    trainer._generated_tool_mask = []
    for row, (prompt, completion) in zip(mask, lengths, strict=True):
        row[width[0] - prompt : width[0] + completion] = 1
        turn = (completion - 10) // turns
        observed = turn * 2 // 3
        tool_mask = ([1] * (turn - observed) + [0] * observed) * turns
        trainer._generated_tool_mask.append(tool_mask + [1] * (completion - len(tool_mask)))
    return ids, mask, width[1]


@torch.no_grad()
def logps(trainer: A2TGPOTrainer, batch: tuple, chunk: int, rides: bool) -> tuple:
    """Log-probabilities, and the model that beliefs rode on."""
    trainer.model.eval()
    with replaced(trainer, _answers=[ANSWER] * len(batch[0]) if rides else None, _riding=None):
        old = trainer._get_per_token_logps_and_entropies(trainer.model, *batch, batch_size=chunk)[0]
        return old, trainer._riding


def measure(trainer: A2TGPOTrainer, batch: tuple, chunk: int, rounds: int) -> dict:
    alone, riding = (logps(trainer, batch, chunk, rides) for rides in (False, True))
    alone = alone[0]
    assert torch.equal(alone, riding[0]), "not TRL's log-probabilities"
    beliefs = torch.cat(riding[1].beliefs)
    methods = {
        name: partial(logps, trainer, batch, chunk, rides) for name, rides in (("alone", False), ("riding", True))
    }
    seconds = in_turn(methods, rounds)
    return {
        "riding_over_alone": ratio(seconds, "riding", "alone"),
        "beliefs": int((~beliefs.isnan()).sum()),
        "probe_tokens": len(trainer._tokenizer(f"\n{ANSWER}")["input_ids"]),
        "padding_share_of_the_forward": round(1 - batch[1].float().mean().item(), 3),
        "seconds": seconds,
    }


def memory(trainer: A2TGPOTrainer, batch: tuple) -> dict:
    return {
        name: peak_megabytes(partial(logps, trainer, batch, 1, rides))
        for name, rides in (("alone", False), ("riding", True))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=8000, help="tokens of the completion whose memory is measured")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pick = random.Random(0)
    settings = {
        "long, float32": (torch.float32, 2, [(200, 1800)] * 2, 8),
        "demo, bfloat16": (torch.bfloat16, 4, [(25, pick.randint(75, 175)) for _ in range(16)], 2),
    }
    figures = {}
    for name, (dtype, chunk, lengths, turns) in settings.items():
        print(name, flush=True)
        trainer = make_trainer(dtype, chunk, len(lengths))
        figures[name] = measure(trainer, make_batch(trainer, lengths, turns), chunk, options.rounds)
    trainer = make_trainer(torch.float32, 1, 2)
    figures["megabytes of a long completion"] = memory(trainer, make_batch(trainer, [(200, options.long - 200)], 8))
    report(__file__, "information gain beside the old log-probabilities", options, figures)


if __name__ == "__main__":
    main()
