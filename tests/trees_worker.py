"""Plays a tree of four leaves on each of however many processes it is launched with; generation is collective."""

import os
import sys
from pathlib import Path

import torch
import trl.trainer.grpo_trainer
from datasets import Dataset
from trl import GRPOTrainer

import a2tgpo_trl.rollout.protocols.chat
import chance
import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.rollout.generation.backends import TransformersBackend

GROUP = 4


def main(folder: Path) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    for module in (trl.trainer.grpo_trainer, a2tgpo_trl.rollout.protocols.chat):
        module.parse_response = chance.calls_by_sum
    generations, generate = [], GRPOTrainer._generate_single_turn

    def collective(trainer, prompt_ids, *args, **kwargs):
        """As with FSDP: where processes do not call it equally often, they hang."""
        generations.append(len(prompt_ids))
        torch.distributed.all_reduce(torch.ones(1))
        return generate(trainer, prompt_ids, *args, **kwargs)

    GRPOTrainer._generate_single_turn = collective
    TransformersBackend._what_is_collective = lambda backend, sharding: "FSDP"
    model = tiny.model()
    model.generation_config.eos_token_id = chance.ENDS
    args = A2TGPOConfig(
        output_dir=str(folder / "run"),
        advantage_estimator="at2po",
        tree_chains=2,
        tree_expansions=1,
        num_generations=GROUP,
        per_device_train_batch_size=GROUP,
        max_completion_length=200,
        max_tool_calling_iterations=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = chance.rows()[:: 2 * processes]
    trainer = A2TGPOTrainer(
        model,
        lambda completions, **kwargs: [len(str(text)) % 7 / 7 for text in completions],
        args,
        Dataset.from_list(rows),
        processing_class=tiny.chat_tokenizer(),
        tools=[chance.look],
    )
    trainer.model.train()
    torch.manual_seed(rank)
    batch = trainer._roll_out([rows[rank]] * GROUP)
    torch.save(
        {
            "generations": len(generations),
            "paths": [[turn.node for turn in rollout.turns] for rollout in batch.rollouts],
            "nodes": batch.turns.signals["nodes"],
            "values": batch.credit.columns["value"],
            "metrics": {
                name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith("tree/")
            },
        },
        folder / f"{rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
