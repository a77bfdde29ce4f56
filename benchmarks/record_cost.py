"""
Claim: turn records, and their tables in wandb, take at most 1 % of a step.

The demo's model, adapter and settings, with rollouts that are given, as in `step_cost.py`: generation, beside which the
share would be smaller, takes no time. Every batch is recorded and sent as a table to an offline run of wandb. One round is
a whole `train()` of eight updates on a batch of 32 rollouts; in it the clock runs for the round, and for the recording
inside it.

    python benchmarks/record_cost.py

Writes the figures as JSON beside itself.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": tempfile.mkdtemp()}

import torch
from measuring import report
from step_cost import demo_rollouts, make_trainer

import a2tgpo_trl.trainer
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.batch import GenerationBatch
from a2tgpo_trl.callbacks.recorder import TurnRecorder, log_table
from a2tgpo_trl.demo.model import load_model, load_tokenizer, prepare_model
from a2tgpo_trl.records import read_turns


class Clock:
    """Adds up what the parts of recording take."""

    def __init__(self):
        self.seconds = 0.0

    def of(self, function: Callable) -> Callable:
        """The function, with the clock running inside it."""

        def timed(*args):
            start = time.perf_counter()
            result = function(*args)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def main() -> None:
    import wandb

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = prepare_model(options.model)
    rows, rollouts = demo_rollouts(load_tokenizer(folder))
    trainer = make_trainer(A2TGPOTrainer, A2TGPOConfig, load_model(folder).bfloat16(), rollouts, rows)
    wandb.init(project="benchmark")
    clock, record = Clock(), TurnRecorder.record

    def record_and_send(*args):
        record(*args)
        log_table(read_turns(trainer.args.output_dir).to_pylist(), trainer.state.global_step, ["wandb"])

    TurnRecorder.record = clock.of(record_and_send)
    GenerationBatch.finish_rollouts = clock.of(GenerationBatch.finish_rollouts)
    a2tgpo_trl.trainer.credit_columns = clock.of(a2tgpo_trl.trainer.credit_columns)
    whole, recording = [], []
    for _ in range(options.rounds + 1):
        clock.seconds, start = 0.0, time.perf_counter()
        trainer.train()
        whole.append(time.perf_counter() - start)
        recording.append(clock.seconds)
    shares = [part / all_of_it for part, all_of_it in zip(recording[1:], whole[1:], strict=True)]
    files = list(Path(trainer.args.output_dir).rglob("turns/*.parquet"))
    report(
        __file__,
        "turn records and their tables take at most 1 % of a step",
        options,
        {
            "turns": read_turns(trainer.args.output_dir).num_rows,
            "bytes_of_a_batch": sum(file.stat().st_size for file in files),
            "share_of_the_step": {
                "median": round(statistics.median(shares), 4),
                "min": round(min(shares), 4),
                "max": round(max(shares), 4),
            },
            "seconds": {"recording": recording[1:], "whole": whole[1:]},
        },
    )


if __name__ == "__main__":
    main()
