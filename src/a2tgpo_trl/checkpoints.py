"""Checkpoints that a run can go on from: those that were written to their end."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The last complete checkpoint of a run. A later one that was cut off while it was written is left out, with a warning.

    Args:
        output_dir (`str` or `Path`): Where the run saves checkpoints.

    Returns:
        `str` or `None`: its folder; `None` if there is no complete one.
    """
    numbered = [folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(folder) is not None]
    for folder in sorted(numbered, key=_step, reverse=True):
        damage = damage_of(folder)
        if damage is None:
            return str(folder)
        logger.warning(f"{folder} is left out: it is no complete checkpoint ({damage}).")
    return None


def damage_of(folder: str | Path) -> str | None:
    """
    What makes a folder no complete checkpoint, in words; `None` if it is one.

    Its state is what a trainer writes last; weights and optimizer are whole if the tables of what is in them are.
    """
    folder = Path(folder)
    state = folder / TRAINER_STATE_NAME
    if not folder.is_dir():
        return "there is no such folder"
    if not state.is_file():
        return f"it has no {TRAINER_STATE_NAME}"
    try:
        json.loads(state.read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError):
        return f"{TRAINER_STATE_NAME} is cut off"
    return next((f"{file.name} is cut off" for file in sorted(folder.iterdir()) if not _is_whole(file)), None)


def steps_of(checkpoint: str | Path) -> int:
    """Optimizer steps that were taken before a complete checkpoint."""
    return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]


def _step(folder: Path) -> int | None:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and folder.is_dir() else None


def _is_whole(file: Path) -> bool:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return file.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(file)
