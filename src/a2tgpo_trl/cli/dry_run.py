"""What `a2tgpo train --dry_run` shows."""

import dataclasses
from enum import Enum
from typing import Any

import yaml

from ..integrations.plain import plain
from ..records.rows import turn_rows
from ..report import as_markdown, shown_rollout
from ..trainer import A2TGPOTrainer
from .memory import Part, estimate, peak

DERIVED = ("generation_batch_size",)
"""Options that TRL computes from others, and takes from nobody beside these."""


def resolved(arguments: Any, config: Any, model: Any) -> dict[str, Any]:
    """
    A run as YAML for `--config`, by the names of options.

    Args:
        arguments (`TrainArguments`): Shown as a whole.
        config ([`A2TGPOConfig`]), model (`ModelConfig`): What differs from the defaults; no tokens of the Hub.
    """
    shown = {name: value for name, value in vars(arguments).items() if name != "dry_run"}
    return shown | _changed(model) | _changed(config)


def show(trainer: A2TGPOTrainer, options: dict[str, Any]) -> None:
    """Print options, a prompt as the model reads it, one rollout with its credit, and an estimate of memory."""
    row = next(iter(trainer.train_dataset))
    first, *others = trainer.play([row], num_generations=trainer.num_generations)
    if not trainer.accelerator.is_main_process:
        return
    turns = turn_rows([first], 0, trainer.num_generations, trainer._decode)
    sections = {
        "Options, and what differs from the defaults of the trainer and the model": yaml.safe_dump(
            options, allow_unicode=True, sort_keys=False
        ),
        "Prompt": trainer._decode([first.prompt_ids])[0],
        f"Rollout 1 of {1 + len(others)}": as_markdown(shown_rollout(turns, "Turn by turn")),
        "Memory of one device, estimated": memory_table(estimate(trainer, len(first.prompt_ids))),
    }
    for title, content in sections.items():
        print(f"\n{title}\n{'-' * len(title)}\n{plain(content).strip()}")


def _changed(args: Any) -> dict[str, Any]:
    shown = {}
    for option in dataclasses.fields(args):
        default = option.default_factory() if option.default is dataclasses.MISSING else option.default
        value = getattr(args, option.name)
        value = value.value if isinstance(value, Enum) else value
        value = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else value
        is_told = value not in (default, [], {}) and isinstance(value, (str, int, float, bool, list, dict))
        if is_told and option.name not in DERIVED and not option.name.endswith("_token"):
            shown[option.name] = value
    return shown


def memory_table(parts: dict[str, Part]) -> str:
    """Parts of a run's memory, one a line, and the most that is held at once."""
    phase, most = peak(parts)
    sizes = {name: part.size for name, part in parts.items()} | {f"at the peak, while {phase}": most}
    return "\n".join(f"{name:36}{size / 2**20:10,.0f} MB" for name, size in sizes.items())
