"""
Claim: the loss with turn-level ratios and adaptive clip ranges takes no longer than `GRPOTrainer`'s, forward and backward.

One micro-batch of a model of the demo's shape (135 M parameters, random), float32, all weights trained: 2 completions of 300
tokens, four turns each. Ours with turn ids, (B, T) advantages and clip scales, theirs with one advantage for each completion.

    python benchmarks/loss_cost.py
    python benchmarks/loss_cost.py --device cuda --bf16 --rows 1 2 4 8

Writes the figures as JSON beside itself.
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from measuring import demo_shape, in_turn, make_parser, peak_megabytes, ratio, report
from scripted import make_tokenizer
from trl import GRPOConfig, GRPOTrainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.functional import turn_ids

PROMPT, COMPLETION, TURNS = 50, 250, 4


def make_trainer(trainer_class, config_class, model, rows: int, bf16: bool):
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            per_device_train_batch_size=rows,
            num_generations=2,
            steps_per_generation=2,
            num_iterations=2,
            loss_type="grpo",
            gradient_checkpointing=False,
            use_cpu=model.device.type == "cpu",
            bf16=bf16,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "?", "answer": "Paris"}]),
        processing_class=make_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def make_batch(rows: int, model) -> dict[str, torch.Tensor]:
    vocab_size = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    shape = (rows, COMPLETION)
    tool_mask = torch.ones(shape, dtype=torch.long)
    for turn in range(1, TURNS):
        middle = COMPLETION * turn // TURNS
        tool_mask[:, middle - 20 : middle + 20] = 0
    batch = {
        "prompt_ids": torch.randint(5, vocab_size, (rows, PROMPT), generator=generator),
        "prompt_mask": torch.ones(rows, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(5, vocab_size, shape, generator=generator),
        "completion_mask": torch.ones(shape, dtype=torch.long),
        "tool_mask": tool_mask,
        "old_per_token_logps": torch.randn(shape, generator=generator) - 11,
        "num_items_in_batch": tool_mask.sum(),
    }
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=10)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[2], help="completions of a micro-batch; several are measured"
    )
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    model = demo_shape(options.device, options.toy).train()
    sizes = {rows: measure_rows(model, rows, options) for rows in options.rows}
    return sizes[options.rows[0]] if len(sizes) == 1 else {"rows": sizes}


def measure_rows(model, rows: int, options: argparse.Namespace) -> dict:
    theirs = make_batch(rows, model)
    outcome = torch.tensor([0.5, -0.5], device=options.device).repeat(rows)[:rows]
    ids = turn_ids(theirs["completion_mask"], theirs["tool_mask"])
    scale = 1 + 0.1 * ids.clamp(min=0)
    ours = {**theirs, "turn_ids": ids, "clip_scale": scale, "advantages": outcome.unsqueeze(1) * scale * (ids >= 0)}
    theirs = {**theirs, "advantages": outcome}

    original = model.forward
    trainers = {}
    for name, classes in {"trl": (GRPOTrainer, GRPOConfig), "ours": (A2TGPOTrainer, A2TGPOConfig)}.items():
        model.forward = original  # one fused head is enough
        trainers[name] = make_trainer(*classes, model, rows, options.bf16)

    def step(name: str, batch: dict) -> None:
        with trainers[name].accelerator.autocast():
            loss = trainers[name].compute_loss(model, batch)
        loss.backward()
        model.zero_grad()

    methods = {"trl": lambda: step("trl", theirs), "ours": lambda: step("ours", ours)}
    seconds = in_turn(methods, options.rounds)
    return {
        "ours_over_trl": ratio(seconds, "ours", "trl"),
        "megabytes": {name: peak_megabytes(run) for name, run in methods.items()},
        "seconds": seconds,
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    claim = "loss forward and backward, turn level and adaptive clip against GRPOTrainer's"
    report(__file__, claim, options, measure(options))


if __name__ == "__main__":
    main()
