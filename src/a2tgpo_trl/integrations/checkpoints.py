"""Tells complete checkpoints, from which a run can be resumed, from others, and reads their weights."""

import json
import re
import zipfile
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)


def checkpoint_to_resume(resume_from_checkpoint: str | bool | None, output_dir: str | Path) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` asks for.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*): A folder; `True` for the last complete checkpoint.
        output_dir (`str` or `Path`): Where the run saves checkpoints.

    Returns:
        `str` or `None`: its folder; `None` if none is asked for.

    Raises:
        ValueError: If there is none, or the one that is named is not complete.
    """
    if not resume_from_checkpoint:
        return None
    if resume_from_checkpoint is True:
        if checkpoint := last_checkpoint(output_dir):
            return checkpoint
        raise ValueError(f"resume_from_checkpoint is True, and {output_dir} has no complete checkpoint.")
    if damage := damage_of(resume_from_checkpoint):
        raise ValueError(
            f"resume_from_checkpoint is {str(resume_from_checkpoint)!r}, which is not a complete checkpoint: {damage}. Name "
            "another, or True for the last complete one."
        )
    return resume_from_checkpoint


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The last complete checkpoint of a run. Incomplete ones are skipped with a warning.

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
        logger.warning(f"{folder} is skipped: it is not a complete checkpoint ({damage}).")
    return None


def damage_of(folder: str | Path) -> str | None:
    """
    Why a folder is not a complete checkpoint, in words; `None` if it is one.

    Looks at the state, which Transformers writes last (TRL adds `entropy_ctrl_state.json` with adaptive entropy), and at the
    `.safetensors`, `.pt`, `.pth` and `.bin` files of the folder itself, which are whole if the tables of what is in them are.
    Pickles without such a table are taken for whole. Subfolders, where DeepSpeed and FSDP keep shards, are not looked into.
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


def load_renamed(model: nn.Module, checkpoint: str | Path) -> bool:
    """
    Read weights that `save_pretrained` wrote under other names than the model's own.

    transformers saves some models, such as Qwen2.5-VL, Gemma 3 and Qwen3-MoE, as their older releases are laid out, and reads them so in
    `from_pretrained`. When it resumes training it looks for the model's own names, and leaves what it does not find as it is.

    Args:
        model (`nn.Module`): Whose training goes on.
        checkpoint (`str` or `Path`): Its folder.

    Returns:
        `bool`: whether there were such weights; all are read then, and else none.
    """
    if not isinstance(model, PreTrainedModel) or _saved_names(Path(checkpoint)) <= model.state_dict().keys():
        return False
    dtype = reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})  # rounds none of them
    model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=dtype).state_dict())
    return True


def _saved_names(checkpoint: Path) -> set[str]:
    if (index := checkpoint / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not (file := checkpoint / SAFE_WEIGHTS_NAME).is_file():
        return set()
    with safe_open(file, "pt") as weights:
        return set(weights.keys())


def mark_incomplete(run: str | Path, step: int) -> None:
    """
    Take the state out of a checkpoint that is about to be written again: new weights beside an old state would pass for complete.

    Args:
        run (`str` or `Path`): Folder of the checkpoints.
        step (`int`): Optimizer steps before this one.
    """
    (Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{step}" / TRAINER_STATE_NAME).unlink(missing_ok=True)


def _step(folder: Path) -> int | None:
    number = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(number[1]) if number and folder.is_dir() else None


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return True
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return file.suffix not in (".pt", ".pth", ".bin") or not _is_torn_zip(file)


def _is_torn_zip(file: Path) -> bool:
    """Whether a file begins as `torch.save` begins a zip, empty ones too, and is none; its older format is a bare pickle."""
    with file.open("rb") as opened:
        begins_as_zip = b"PK".startswith(opened.read(2))
    return begins_as_zip and not zipfile.is_zipfile(file)
