"""Trains in several ways on however many processes, and with whatever sharding, it is launched with."""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PrinterCallback
from trl import GRPOTrainer

import tiny
import tiny_vision
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from conftest import CHAT_ROWS, GROUP, QUESTION, chat_correct, chat_rollouts, correct, search

DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
PLACE = {"ddp_backend": "gloo"} if DEEPSPEED else {"use_cpu": True}
"""DeepSpeed is not started where the CPU is asked for by name; it runs there where there is nothing else."""
SKIPS = os.environ.get("SKIP_EMPTY_UPDATES") != "false"
BF16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"

WAYS = {
    "shared": dict(num_iterations=2, gradient_checkpointing=False),
    "apart": dict(beta=0.1),
    "lora": dict(num_iterations=2, beta=0.1, belief_model="reference"),
    "lora_apart": dict(),
    "chat": dict(num_iterations=2),
    "pictures": dict(num_iterations=2, tool_protocol="tags"),
}
"""Beliefs in the forward of old or reference log-probabilities, and in forwards of their own."""
PROCESSING = {"chat": tiny.chat_tokenizer, "pictures": partial(tiny_vision.processor, "qwen2_5_vl")}
CRITIC = dict(advantage_estimator="turn_ppo")


def batches(group):
    """Of each step: ragged; nothing to learn; a process without a tool call."""
    nothing = group[0]
    return [group, [nothing] * 4, [nothing, nothing, *group[2:]]]


def main(folder: Path, names: list[str]) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_fsdp_run_on_a_cpu()
    script = Script(rank, 4 // processes)
    script.install()
    results = {name: trained(name, folder, processes, script) for name in names or WAYS}
    try:
        build("critic", CRITIC, folder, processes)
    except ValueError as error:
        results["refusal"] = str(error)
    torch.save(results, folder / f"{processes}-{rank}.pt")


def let_fsdp_run_on_a_cpu() -> None:
    """accelerate reads `distributed_type: FSDP` on accelerators only; nothing that it does then needs one."""
    original = AcceleratorState.__init__

    def init(state, *args, fsdp_plugin=None, **kwargs):
        original(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


class Script(LogitsProcessor):
    """`model.generate` makes its forwards, and writes what a script says."""

    def __init__(self, rank: int, share: int):
        self.rows = slice(rank * share, (rank + 1) * share)
        self._turns: list[list[int]] | None = None
        self._num_written = 0

    def __call__(self, input_ids, scores):
        if self._turns is None:
            return scores
        chosen = torch.full_like(scores, -torch.inf)
        for row, turn in enumerate(self._turns):
            chosen[row, turn[min(self._num_written, len(turn) - 1)]] = 0.0
        self._num_written += 1
        return chosen

    def begin(self, group) -> None:
        """Another group of rollouts, one script for each step."""
        self.scripts = [tiny.Script(rollouts[self.rows]) for rollouts in batches(group)]
        self.calls = []

    def install(self) -> None:
        single_turn, generate = GRPOTrainer._generate_single_turn, GenerationMixin.generate

        def write(trainer, prompt_ids, *args, **kwargs):
            self._take_turns(trainer, prompt_ids)
            return single_turn(trainer, prompt_ids, *args, **kwargs)

        def generate_what_is_written(model, *args, **kwargs):
            return generate(model, *args, logits_processor=LogitsProcessorList([self]), **kwargs)

        GRPOTrainer._generate_single_turn, GenerationMixin.generate = write, generate_what_is_written

    def _take_turns(self, trainer, prompt_ids):
        self.calls.append(len(prompt_ids))
        self._num_written = 0
        if not trainer.is_in_train:
            self._turns = None
        # A process that takes part, and has nothing to write; its own rows begin together, and are two at least
        elif prompt_ids == [trainer._player.turns._companion[0]]:
            self._turns = [[7]]
        else:
            script = self.scripts[trainer.state.global_step // trainer.num_iterations]
            self._turns = script.write(trainer._tokenizer, prompt_ids)


def trained(name, folder, processes, script):
    script.begin(chat_rollouts() if name == "chat" else GROUP)
    straight = build(name, WAYS[name], folder, processes)
    untrained = played(straight)
    straight.train()
    resumed = build(name, WAYS[name], folder, processes)
    resumed.train(f"{resumed.args.output_dir}/checkpoint-{resumed.args.save_steps:.0f}")
    resumed.save_model(str(folder / f"{name}-{processes}-model"))
    return {
        "weights": weights(straight),
        "resumed": weights(resumed),
        "played": [*untrained, *played(resumed)],
        "generations": len(script.calls),
        "empty": None if DEEPSPEED else straight.skipped_updates.num_empty,
        "held": held(straight.model),
        "gains": [row["information_gain/mean"] for row in straight.state.log_history if "reward" in row],
    }


def played(trainer):
    """By the model itself: as many rollouts as there are processes, all alike."""
    rows = [dict(trainer.train_dataset[0])]
    return [rollout.completion_ids for rollout in trainer.play(rows, greedy=True)]


def weights(trainer):
    """Whole, on one process at least."""
    whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight.clone() for name, weight in whole.items()}


def held(model):
    """The share of the weights that a process keeps between forwards."""
    kept = [(p.to_local() if hasattr(p, "to_local") else p.data).numel() for p in model.parameters()]
    return sum(kept) / sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def look(query: str):
    """
    Look closer.

    Args:
        query: At what.
    """
    return tiny_vision.picture("red") if query == "Lyon" else f"No picture of {query}."


look.__name__ = "search"  # as the scripts call it


def build(name, options, folder, processes):
    args = A2TGPOConfig(
        output_dir=str(folder / f"{name}-{processes}"),
        num_generations=4,
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=2,
        steps_per_generation=1,
        max_completion_length=200 if name == "pictures" else 100,
        max_steps=3 * options.get("num_iterations", 1),
        save_strategy="steps",
        save_steps=2 * options.get("num_iterations", 1),
        learning_rate=1e-3,
        adam_epsilon=1e-6,
        epsilon=2.0,
        lr_scheduler_type="constant",
        report_to=[],
        bf16=BF16,
        skip_empty_updates=SKIPS,
        shuffle_dataset=False,
        logging_steps=1,
        disable_tqdm=True,
        **PLACE,
        **options,
    )
    chat, rows = name in ("chat", "pictures"), [{"prompt": QUESTION, "answer": ["Paris"]}] * 8
    if chat:
        rows = CHAT_ROWS
    if name == "pictures":
        rows = [row | {"image": tiny_vision.picture("blue", (32, 24))} for row in rows]
    trainer = A2TGPOTrainer(
        str(folder / ("vision" if name == "pictures" else "model")),
        chat_correct if chat else correct,
        args,
        Dataset.from_list(rows),
        processing_class=PROCESSING.get(name, tiny.tokenizer)(),
        tools=[look if name == "pictures" else search],
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False, r=4) if "lora" in name else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
