"""What `a2tgpo train --dry_run` shows."""

import dataclasses
from enum import Enum
from typing import Any

import yaml
from trl.data_utils import is_conversational

from ..trainer import A2TGPOTrainer
from .memory import estimate

COLUMNS = {
    "information_gain": "gain",
    "normalized_gain": "normalised",
    "turn_advantages": "advantage",
    "clip_scale": "clip",
}


def show(trainer: A2TGPOTrainer) -> None:
    """Print the options, a prompt as the model reads it, one rollout with its credit, and an estimate of memory."""
    row = next(iter(trainer.train_dataset))
    group = trainer.play([row], num_generations=trainer.num_generations)
    if not trainer.accelerator.is_main_process:
        return
    sections = {
        "Options that differ from the defaults": yaml.safe_dump(_changed(trainer.args), allow_unicode=True),
        "Prompt": _rendered(trainer, row),
        f"Rollout 1 of {len(group)}": _text(group[0]["completion"]),
        "Its credit, turn by turn": credit_table(group[0]),
        "Rewards": "  ".join(f"{name} {value}" for name, value in group[0]["rewards"].items()),
        "Memory of one device, estimated": _memory_table(estimate(trainer)),
    }
    for title, content in sections.items():
        print(f"\n{title}\n{'-' * len(title)}\n{content.strip()}")


def credit_table(played: dict[str, Any]) -> str:
    """Turns of a rollout that [`A2TGPOTrainer.play`] returned, one a line."""
    if "information_gain" not in played:
        return "The estimator 'grpo' gives every turn the outcome's advantage."
    header = "turn " + "".join(f"{title:>12}" for title in COLUMNS.values())
    turns = zip(*(played[name] for name in COLUMNS), strict=True)
    lines = ["".join(["     -      " if v is None else f"{v:12.3f}" for v in values]) for values in turns]
    return "\n".join([header, *(f"{k:<5}{line}" for k, line in enumerate(lines))])


def _changed(args: Any) -> dict[str, Any]:
    shown = {}
    for option in dataclasses.fields(args):
        default = option.default_factory() if option.default is dataclasses.MISSING else option.default
        value = getattr(args, option.name)
        value = value.value if isinstance(value, Enum) else value
        if value != default and isinstance(value, (str, int, float, bool, list, dict)):
            shown[option.name] = value
    return shown


def _rendered(trainer: A2TGPOTrainer, row: dict[str, Any]) -> str:
    if not is_conversational(row):
        return row["prompt"]
    tools = trainer.tools or None
    return trainer._tokenizer.apply_chat_template(
        row["prompt"], tools=tools, add_generation_prompt=True, tokenize=False
    )


def _text(completion: str | list[dict]) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(
        f"[{message['role']}] {message.get('content') or message.get('tool_calls')}" for message in completion
    )


def _memory_table(parts: dict[str, int]) -> str:
    lines = [f"{name:36}{value / 2**20:10,.0f} MB" for name, value in parts.items()]
    return "\n".join([*lines, f"{'in all, if held at once':36}{sum(parts.values()) / 2**20:10,.0f} MB"])
