"""Trains in several ways on however many processes, and with whatever sharding, it is launched with."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PrinterCallback
from trl import GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from conftest import GROUP, QUESTION, correct, search

ROME = GROUP[0]
BATCHES = [GROUP, [ROME] * 4, [ROME, ROME, *GROUP[2:]]]
"""Of each step: ragged; nothing to learn; a process without a tool call."""

WAYS = {
    "shared": dict(num_iterations=2, advantage_estimator="a2tgpo"),
    "apart": dict(beta=0.1),
    "lora": dict(num_iterations=2, beta=0.1, belief_model="reference"),
    "lora_apart": dict(),
}


def main(folder: Path, names: list[str]) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_fsdp_run_on_a_cpu()
    results = {}
    for name in names:
        print("way", name, rank, flush=True)
        results[name] = trained(name, folder, processes, rank)
    torch.save(results, folder / f"{processes}-{rank}.pt")


def let_fsdp_run_on_a_cpu() -> None:
    """accelerate reads `distributed_type: FSDP` on accelerators only; nothing that it does then needs one."""
    original = AcceleratorState.__init__

    def init(state, *args, fsdp_plugin=None, **kwargs):
        original(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


class Script(LogitsProcessor):
    """`model.generate` makes its forwards, and writes what a script says."""

    def __init__(self, rank: int, share: int):
        self.scripts = [tiny.Script(rollouts[rank * share : (rank + 1) * share]) for rollouts in BATCHES]
        self.calls: list[int] = []
        self._turns: list[list[int]] = []
        self._num_written = 0

    def __call__(self, input_ids, scores):
        chosen = torch.full_like(scores, -torch.inf)
        for row, turn in enumerate(self._turns):
            chosen[row, turn[min(self._num_written, len(turn) - 1)]] = 0.0
        self._num_written += 1
        return chosen

    @contextmanager
    def installed(self):
        write, single_turn, generate = self, GRPOTrainer._generate_single_turn, GenerationMixin.generate

        def with_script(trainer, prompt_ids, *args, **kwargs):
            write._begin(trainer, prompt_ids)
            return single_turn(trainer, prompt_ids, *args, **kwargs)

        def of_script(model, *args, **kwargs):
            return generate(model, *args, logits_processor=LogitsProcessorList([write]), **kwargs)

        GRPOTrainer._generate_single_turn, GenerationMixin.generate = with_script, of_script
        try:
            yield
        finally:
            GRPOTrainer._generate_single_turn, GenerationMixin.generate = single_turn, generate

    def _begin(self, trainer, prompt_ids):
        self.calls.append(len(prompt_ids))
        self._num_written = 0
        if prompt_ids == [[trainer._tokenizer.eos_token_id]]:  # a process that takes part, and has nothing to write
            self._turns = [[7]]
        else:
            script = self.scripts[trainer.state.global_step // trainer.num_iterations]
            self._turns = script.write(trainer._tokenizer, prompt_ids)


def trained(name, folder, processes, rank):
    options = WAYS[name]
    share = 4 // processes
    script = Script(rank, share)
    args = A2TGPOConfig(
        output_dir=str(folder / f"{name}-{processes}"),
        num_generations=4,
        per_device_train_batch_size=share,
        steps_per_generation=1,
        max_completion_length=400,
        max_steps=3 * options.get("num_iterations", 1),
        learning_rate=1e-3,
        epsilon=0.2,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        skip_empty_updates=True,
        shuffle_dataset=False,
        logging_steps=1,
        disable_tqdm=True,
        **{"advantage_estimator": "a2tgpo", **options},
    )
    adapter = LoraConfig(target_modules="all-linear", init_lora_weights=False, r=4) if "lora" in name else None
    trainer = A2TGPOTrainer(
        str(folder / "model"),
        correct,
        args,
        Dataset.from_list([{"prompt": QUESTION, "answer": ["Paris"]}] * 8),
        processing_class=tiny.tokenizer(),
        tools=[search],
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    with script.installed():
        trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model)
    sharded = [type(parameter).__name__ for parameter in trainer.model.parameters()]
    return {
        "weights": weights,
        "calls": script.calls,
        "empty": trainer.skipped_updates.num_empty,
        "sharded": sorted(set(sharded)),
        "log": trainer.state.log_history,
        "type": str(trainer.accelerator.distributed_type),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] or list(WAYS))
