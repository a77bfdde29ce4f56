"""Kills a run again and again, and lets it go on; it forks runs, and trains nothing itself."""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from trl import GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.integrations.checkpoints import damage_of, last_checkpoint, steps_of
from a2tgpo_trl.records import read_turns
from conftest import search
from cutting import assert_same_run, chance, dataset, write_at_random

STEPS, KILLS = 20, 60
METHODS = {"a2tgpo": {}, "turn_ppo": dict(critic_layers=0)}


def trainer(folder: Path, method: str) -> A2TGPOTrainer:
    args = A2TGPOConfig(
        output_dir=str(folder), num_generations=4, per_device_train_batch_size=4, steps_per_generation=4, num_iterations=1,
        gradient_accumulation_steps=1, max_completion_length=400, max_steps=STEPS, learning_rate=1e-3, logging_steps=2,
        save_strategy="steps", save_steps=2, save_total_limit=2, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, tool_protocol="tags", max_tool_calling_iterations=3, lockstep=True, disable_tqdm=True,
        advantage_estimator=method, **METHODS[method],
    )  # fmt: skip
    return A2TGPOTrainer(tiny.model(), chance, args, dataset(), processing_class=tiny.tokenizer(), tools=[search])


def go_on(folder: Path, method: str) -> None:
    """Train to the end from the last whole checkpoint, and compare with a run that nobody killed."""
    checkpoint = last_checkpoint(folder)
    if list((folder / "turns").glob("*.parquet")):
        read_turns(folder)  # or a record is torn
    run = trainer(folder, method)
    something_was_left = steps(folder) < STEPS
    (folder / "began").touch()
    run.train(resume_from_checkpoint=checkpoint)
    (folder / "ended").touch()
    whole = trainer(folder.with_name(f"{folder.name}-whole"), method)
    whole.train()
    assert_same_run(run, whole, something_was_left)


def fork(folder: Path, method: str) -> int:
    (folder / "began").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            go_on(folder, method)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def is_over(child: int) -> bool:
    """Whether it has ended by itself, and well."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("A run that went on failed, see above.")
    return bool(ended)


def wait_for(child: int, happens) -> bool:
    """Wait until something happens, or the run is over: whether it is."""
    while not happens():
        if is_over(child):
            return True
        time.sleep(0.0005)
    return False


def steps(folder: Path) -> int:
    checkpoint = last_checkpoint(folder)
    return steps_of(checkpoint) if checkpoint else 0


def damaged(folder: Path) -> set[Path]:
    return {checkpoint for checkpoint in folder.glob("checkpoint-*") if damage_of(checkpoint) is not None}


def kill(child: int, folder: Path, in_a_checkpoint: bool, chance: random.Random) -> bool:
    """Kill a run at some moment; whether it was over before."""
    there = set(folder.glob("checkpoint-*"))
    if wait_for(child, lambda: (folder / "began").exists()):
        return True
    if in_a_checkpoint:
        if wait_for(child, lambda: set(folder.glob("checkpoint-*")) - there or (folder / "ended").exists()):
            return True
        time.sleep(chance.uniform(0, 0.03))
    else:
        time.sleep(chance.uniform(0, 1.5))
    if (folder / "ended").exists():
        return wait_for(child, lambda: False)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    GRPOTrainer._generate_single_turn = write_at_random
    chance = random.Random(0)
    kills = torn = 0
    finished = []
    while True:
        method = list(METHODS)[len(finished) % len(METHODS)]
        run = folder / f"run-{len(finished)}"
        run.mkdir(exist_ok=True)
        before, torn_before, child = steps(run), damaged(run), fork(run, method)
        if kills == KILLS:
            wait_for(child, lambda: False)
            finished.append(method)
            break
        if kill(child, run, kills % 3 == 0, chance):
            finished.append(method)
            continue
        kills += 1
        torn += bool(damaged(run) - torn_before)
        after = steps(run)
        assert after >= before, f"the checkpoint of step {before} is lost, the last whole one is of {after}"
    (folder / "told.json").write_text(json.dumps({"kills": kills, "torn": torn, "finished": finished}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
