"""A run that is cut and goes on, on two processes; then with the file of one of them torn."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from trl import GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from conftest import search
from cutting import Cut, assert_same_run, chance, dataset, write_at_random


def main(folder: Path) -> None:
    GRPOTrainer._generate_single_turn = write_at_random
    whole = trainer(folder / "whole")
    whole.train()
    cut = trainer(folder / "cut", Cut(5))
    cut.train()
    checkpoint = folder / "cut" / "checkpoint-5"
    rest = trainer(folder / "cut")
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert_same_run(rest, whole)
    if whole.accelerator.is_main_process:
        file = checkpoint / "run_state" / "rank-1.pt"
        file.write_bytes(file.read_bytes()[:1000])
    whole.accelerator.wait_for_everyone()
    fresh = trainer(folder / "cut")
    fresh.train(resume_from_checkpoint=str(checkpoint))
    assert fresh.state.global_step == 7 and fresh._step == 2  # all processes wrote anew, or they would hang


def trainer(folder: Path, *callbacks) -> A2TGPOTrainer:
    args = A2TGPOConfig(
        output_dir=str(folder),
        num_generations=4,
        per_device_train_batch_size=1,
        steps_per_generation=4,
        gradient_accumulation_steps=1,
        max_completion_length=400,
        max_steps=7,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        tool_protocol="tags",
        max_tool_calling_iterations=3,
        lockstep=True,
        advantage_estimator="turn_ppo",
    )
    given = dict(processing_class=tiny.tokenizer(), tools=[search], callbacks=list(callbacks))
    return A2TGPOTrainer(tiny.model(), chance, args, dataset(), **given)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    PartialState().destroy_process_group()  # gloo's threads may abort a process that ends beside them
