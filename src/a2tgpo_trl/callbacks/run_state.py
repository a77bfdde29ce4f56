"""[`RunState`]: what TRL and transformers leave out of a checkpoint, so that a run goes on exactly from wherever it was cut."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from ..config import A2TGPOConfig
from ..records.tables import completions_table

logger = logging.get_logger(__name__)

FOLDER = "run_state"
"""Of a checkpoint. Files of the checkpoint itself are taken for weights by some engines."""

WHERE_AND_SHOWN = (
    "log_completions",
    "log_completions_hub_repo",
    "log_multimodal",
    "log_unique_prompts",
    "num_completions_to_print",
    "turn_records",
    "turn_records_max_mb",
    "turn_records_picture_px",
    "turn_table_steps",
    "tool_concurrency",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
)
"""Options of TRL and this library that say where something runs, or what is shown of it: batches are the same with others."""

PACKAGES = ("a2tgpo-trl", "trl", "transformers")
"""Packages on whose versions it depends what a batch holds."""

OF_TRANSFORMERS = ("per_device_train_batch_size", "gradient_accumulation_steps", "seed")
"""Options of transformers on which batches depend."""


class RunState(TrainerCallback):
    """
    Saves, in a file for each process beside the checkpoint, and loads:

    - the rollouts that are still to be trained on, and how many micro-batches were;
    - metrics, loss and completions that are not logged yet;
    - what parts of this library count.

    It also lets the sampler draw the orders of the epochs that are over, for transformers skips the batches of the last one alone.

    Args:
        trainer ([`~trl.GRPOTrainer`]): Whose run it is.
        parts (`Mapping[str, Any]`): Parts with a state, by name: with `state_dict()`, of numbers, and `load_state_dict(state)`.
    """

    def __init__(self, trainer: GRPOTrainer, parts: Mapping[str, Any]):
        self.trainer = trainer
        self.parts = parts

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.trainer._step, self.trainer._buffered_inputs = 0, None  # a trainer may train again
        self.trainer._last_loaded_step = -1
        _draw_epochs(train_dataloader, int(state.epoch or 0))

    def save(self, checkpoint: str | Path) -> None:
        """Write this process's file, which is whole or not there; to be called by all processes between two optimizer steps."""
        file = self._file(checkpoint)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(self._state(), partial)
        partial.replace(file)

    def load(self, checkpoint: str | Path) -> None:
        """
        Go on from where a checkpoint was saved; to be called by all processes.

        Where the file of any process is missing, damaged, or of a run with other options, all of them go on with fresh rollouts, and
        a warning says why.
        """
        state, fault = self._read(self._file(checkpoint))
        faults = [fault for fault in gather_object([fault]) if fault]
        if not faults:
            self._take(state)
        elif self.trainer.accelerator.is_main_process:
            logger.warning(
                f"{checkpoint}: {faults[0]}. The run goes on with fresh rollouts, and not exactly as it would have without the cut."
            )

    def _file(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / FOLDER / f"rank-{self.trainer.args.process_index}.pt"

    def _place(self) -> dict[str, Any]:
        """What must be the same where the state is loaded."""
        trainer = self.trainer
        return {
            "processes": trainer.args.world_size,
            "step": trainer.state.global_step,
            "versions": {package: version(package) for package in PACKAGES},
            "options": options_of_batches(trainer.args),
        }

    def _state(self) -> dict[str, Any]:
        trainer = self.trainer
        is_between_batches = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0
        return {
            "place": self._place(),
            "micro_step": trainer._step,
            "batches": None if is_between_batches else trainer._buffered_inputs,
            "completions": None if is_between_batches else self._completions(),
            "metrics": {name: list(map(float, values)) for name, values in trainer._metrics["train"].items()},
            "loss": trainer._tr_loss,
            "last_logged": trainer._globalstep_last_logged,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def _completions(self) -> dict[str, Any] | None:
        """TRL's completions table of the rollouts that are trained on, as it is logged; `None` if it is not."""
        if not self.trainer.log_completions:
            return None
        logs = completions_table(self.trainer._logs)
        columns = {name: list(logs[name]) for name in ("prompt", "completion", "advantages")}
        return columns | {
            name: {column: list(cells) for column, cells in logs[name].items()} for name in ("rewards", "extra")
        }

    def _read(self, file: Path) -> tuple[dict[str, Any] | None, str | None]:
        """The state that a file holds; or `None`, and why it cannot be taken."""
        name = f"{FOLDER}/{file.name}"
        if not file.is_file():
            return None, f"it has no {name}, which tells what is still to be trained on"
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load does not look at the checksums
            if damaged is not None:
                return None, f"{name} is damaged"
            state = torch.load(file, map_location="cpu", weights_only=True)
            difference = _difference(state["place"], self._place())
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError):
            return None, f"{name} is damaged"
        except (KeyError, TypeError, AttributeError):
            return None, f"{name} holds something else"
        if difference is not None:
            return None, f"{name} was written {difference}"
        return send_to_device(state, self.trainer.accelerator.device), None

    def _take(self, state: Mapping[str, Any]) -> None:
        trainer = self.trainer
        trainer._step, trainer._buffered_inputs = state["micro_step"], state["batches"]
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(state["metrics"])
        trainer._tr_loss, trainer._globalstep_last_logged = state["loss"], state["last_logged"]
        # Transformers' train_loss is a mean over the steps since the cut
        trainer._total_loss_scalar -= trainer.accelerator.gather(state["loss"]).mean().item()
        for name, logged in (state["completions"] or {}).items():
            columns = logged if isinstance(logged, dict) else {None: logged}
            for column, cells in columns.items():
                kept = trainer._logs[name] if column is None else trainer._logs[name][column]
                kept.clear()
                kept.extend(cells)
        for name, part in self.parts.items():
            if name in state["parts"]:
                part.load_state_dict(state["parts"][name])


def options_of_batches(args: A2TGPOConfig) -> dict[str, str]:
    """
    The options of a run on which its batches may depend, as JSON by name.

    Args:
        args ([`A2TGPOConfig`]): Of the run.
    """
    others = {option.name for option in fields(TrainingArguments)} - {*OF_TRANSFORMERS} | {*WHERE_AND_SHOWN}
    options = {name: value for name, value in args.to_dict().items() if name not in others}
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in options.items()}


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """How the place of a state differs from what is expected, in words; `None` if it does not."""
    if found["processes"] != expected["processes"]:
        return f"by {found['processes']} processes, and this run has {expected['processes']}"
    if found["step"] != expected["step"]:
        return f"at step {found['step']}, and the checkpoint is of step {expected['step']}"
    if found["versions"] != expected["versions"]:
        return f"with {_listed(found['versions'])}, and this is {_listed(expected['versions'])}"
    before, now = found["options"], expected["options"]
    other = [name for name in now if before.get(name) != now[name]]
    if other:
        changes = ", ".join(f"{name}={before.get(name)}, now {now[name]}" for name in other)
        return f"with other options ({changes})"
    return None


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())


def _draw_epochs(dataloader: DataLoader, epochs: int) -> None:
    """Have TRL's sampler draw the orders of some epochs, which come from one generator."""
    batch_sampler = getattr(dataloader.batch_sampler, "batch_sampler", dataloader.batch_sampler)  # accelerate's shards
    sampler = getattr(batch_sampler, "sampler", None)
    if isinstance(sampler, RepeatSampler):
        for _ in range(epochs):
            next(iter(sampler), None)
