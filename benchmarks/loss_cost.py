"""
Claim: the loss with turn-level ratios and adaptive clip ranges takes no longer than `GRPOTrainer`'s, forward and backward.

One micro-batch of a model of the demo's shape (135 M parameters, random), float32, all weights trained: 2 completions of 300
tokens, four turns each. Ours with turn ids, (B, T) advantages and clip scales, theirs with one advantage for each completion.

    python benchmarks/loss_cost.py

Writes the figures as JSON beside itself.
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from measuring import demo_shape, in_turn, peak_megabytes, ratio, report
from scripted import make_tokenizer
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.functional import turn_ids

ROWS, PROMPT, COMPLETION, TURNS = 2, 50, 250, 4


def make_trainer(trainer_class, config_class, model):
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            per_device_train_batch_size=ROWS,
            num_generations=ROWS,
            num_iterations=2,
            loss_type="grpo",
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "?", "answer": "Paris"}]),
        processing_class=make_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, COMPLETION)
    tool_mask = torch.ones(shape, dtype=torch.long)
    for turn in range(1, TURNS):
        middle = COMPLETION * turn // TURNS
        tool_mask[:, middle - 20 : middle + 20] = 0
    return {
        "prompt_ids": torch.randint(5, 49152, (ROWS, PROMPT), generator=generator),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(5, 49152, shape, generator=generator),
        "completion_mask": torch.ones(shape, dtype=torch.long),
        "tool_mask": tool_mask,
        "old_per_token_logps": torch.randn(shape, generator=generator) - 11,
        "num_items_in_batch": tool_mask.sum(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs, outcome = make_batch(), torch.tensor([0.5, -0.5])
    ids = turn_ids(theirs["completion_mask"], theirs["tool_mask"])
    scale = 1 + 0.1 * ids.clamp(min=0)
    ours = {**theirs, "turn_ids": ids, "clip_scale": scale, "advantages": outcome.unsqueeze(1) * scale * (ids >= 0)}
    theirs = {**theirs, "advantages": outcome}

    model = demo_shape().train()
    original = model.forward
    trainers = {"trl": make_trainer(GRPOTrainer, GRPOConfig, model)}
    model.forward = original  # one fused head is enough
    trainers["ours"] = make_trainer(A2TGPOTrainer, A2TGPOConfig, model)

    def step(name: str, batch: dict) -> None:
        model.zero_grad()
        trainers[name].compute_loss(model, batch).backward()

    methods = {"trl": lambda: step("trl", theirs), "ours": lambda: step("ours", ours)}
    seconds = in_turn(methods, options.rounds)
    report(
        __file__,
        "loss forward and backward, turn level and adaptive clip against GRPOTrainer's",
        options,
        {
            "ours_over_trl": ratio(seconds, "ours", "trl"),
            "megabytes": {name: peak_megabytes(run) for name, run in methods.items()},
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
