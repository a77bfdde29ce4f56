"""Tells complete checkpoints, from which a run can be resumed, from others, and reads their weights."""

import json
import re
import zipfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .replaced import replaced

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


@contextmanager
def reading_saved_names(model: nn.Module, checkpoint: str | Path):
    """
    While a model takes the weights of a checkpoint by `load_state_dict`, under whatever names they were saved.

    transformers saves some models, most of those for pictures, under the names of its older releases, and goes on training as
    if the names were the model's: what it does not find stays as it was.

    Args:
        model (`nn.Module`): Whose training goes on.
        checkpoint (`str` or `Path`): Its folder, as `save_pretrained` writes it.
    """
    load = model.load_state_dict

    def load_renamed(state_dict: dict, *args, **kwargs):
        if state_dict.keys() - model.state_dict().keys():
            state_dict = type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict()
        return load(state_dict, *args, **kwargs)

    with replaced(model, load_state_dict=load_renamed) if isinstance(model, PreTrainedModel) else nullcontext():
        yield


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
