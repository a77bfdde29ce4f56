"""What `a2tgpo train --dry_run` shows."""

import dataclasses
from collections.abc import Collection
from enum import Enum
from typing import Any

import yaml

from ..integrations.plain import plain
from ..rollout import Rollout
from ..trainer import A2TGPOTrainer
from .memory import Part, estimate, peak

COLUMNS = {
    "information_gain": "gain",
    "normalized_gain": "normalised",
    "advantage": "advantage",
    "clip_scale": "clip",
}
"""Of the credit of turns, what is shown, and its title."""

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
    prompt = trainer._tokenize_prompts([row["prompt"]])[0][0]
    sections = {
        "Options, and what differs from the defaults of the trainer and the model": yaml.safe_dump(
            options, allow_unicode=True, sort_keys=False
        ),
        "Prompt": trainer._tokenizer.decode(prompt),
        f"Rollout 1 of {1 + len(others)}": _text(first.completion),
        "Its credit, turn by turn": credit_table(first, trainer.estimator.columns),
        "Rewards": "  ".join(f"{name} {value}" for name, value in first.rewards.items()),
        "Memory of one device, estimated": memory_table(estimate(trainer, len(prompt))),
    }
    for title, content in sections.items():
        print(f"\n{title}\n{'-' * len(title)}\n{plain(content).strip()}")


def credit_table(rollout: Rollout, own: Collection[str] = ()) -> str:
    """
    Turns of a rollout, one a line.

    Args:
        rollout ([`~rollout.Rollout`]): With its credit.
        own (`Collection[str]`): Columns of the estimator.
    """
    credit = [turn.credit for turn in rollout.turns]
    shown = {name: COLUMNS.get(name, name) for name in (*COLUMNS, *own) if any(name in columns for columns in credit)}
    lines = ["turn " + "".join(f" {title:>11}" for title in shown.values())]
    for k, columns in enumerate(credit):
        numbers = [columns.get(name) for name in shown]
        lines.append(f"{k:<5}" + "".join("     -      " if v is None else f"{v:12.3f}" for v in numbers))
    return "\n".join(lines)


def _changed(args: Any) -> dict[str, Any]:
    shown = {}
    for option in dataclasses.fields(args):
        default = option.default_factory() if option.default is dataclasses.MISSING else option.default
        value = getattr(args, option.name)
        value = value.value if isinstance(value, Enum) else value
        is_told = value not in (default, [], {}) and isinstance(value, (str, int, float, bool, list, dict))
        if is_told and option.name not in DERIVED and not option.name.endswith("_token"):
            shown[option.name] = value
    return shown


def _text(completion: str | list[dict]) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(
        f"[{message['role']}] {message.get('content') or message.get('tool_calls')}" for message in completion
    )


def memory_table(parts: dict[str, Part]) -> str:
    """Parts of a run's memory, one a line, and the most that is held at once."""
    phase, most = peak(parts)
    sizes = {name: part.size for name, part in parts.items()} | {f"at the peak, while {phase}": most}
    return "\n".join(f"{name:36}{size / 2**20:10,.0f} MB" for name, size in sizes.items())
