"""Writes docs/options.md from the options of A2TGPOConfig: what each does, its default, and the estimators that read it.

python scripts/build_options.py
"""

import re
from dataclasses import Field, fields
from pathlib import Path

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import ESTIMATORS, options_read

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

INTRODUCTION = """\
# Options

After this page you can set every option that `A2TGPOConfig` adds to TRL's `GRPOConfig`, or whose default it changes.

All other options are TRL's. Each option is an argument of `A2TGPOConfig`, a flag of [the command line](command_line.md), and a line of
YAML for its `--config`. [algorithm.md](algorithm.md) lists the equations that are cited here.

The column "read by" names the estimators (`advantage_estimator`) that an option affects: setting it with another one is an error. Tables
without that column hold options for every estimator. Where a default names estimators, "the others" are those that read the option.

`python scripts/build_options.py` writes this page from the texts in `config.py`; change those.
"""

GROUPS = {
    "Credit": (
        "How turns get credit from gains, turn rewards and the outcome. [methods.md](methods.md) compares the estimators,\n"
        "[your_own_method.md](your_own_method.md) adds one.",
        (
            "advantage_estimator",
            "turn_advantage_coef",
            "turn_advantage_schedule",
            "turn_gamma",
            "turn_clip_strength",
            "turn_normalization",
            "turn_rescale",
            "turn_credit_groups",
            "gain_noise_floor",
            "turn_comparison",
            "turn_aggregation",
            "turn_baseline",
            "turn_scale",
            "turn_outcome",
            "turn_reward_weights",
            "gae_lambda",
            "whiten_advantages",
        ),
    ),
    "Critic": (
        "What `turn_ppo` expects of a rollout before each turn; see [methods.md](methods.md#turn_ppo).",
        ("critic_layers", "critic_learning_rate", "vf_coef", "cliprange_value"),
    ),
    "Beliefs": (
        "How the policy's belief in the true answer is measured; see [beliefs.md](beliefs.md).",
        (
            "belief_measure",
            "belief_model",
            "gain_from",
            "answer_column",
            "answer_aliases",
            "answer_template",
            "ig_tokens_per_batch",
        ),
    ),
    "Rollouts and tools": (
        "How a rollout calls tools and when it ends; see [rollout.md](rollout.md).",
        (
            "tool_protocol",
            "tool_loop",
            "tool_tags",
            "result_tag",
            "answer_stop",
            "tool_concurrency",
            "tool_timeout",
            "max_abandoned_calls",
            "max_turn_tokens",
            "max_observation_tokens",
        ),
    ),
    "Generation": (
        "How turns are generated together; see [rollout.md](rollout.md#who-waits-for-whom).",
        ("reuse_history", "lockstep"),
    ),
    "Trees": (
        "Rollouts that begin as others did; see [rollout.md](rollout.md#trees).",
        ("tree_chains", "tree_expansions", "tree_choice", "tree_sibling_penalty", "tree_shared_turns"),
    ),
    "Records": (
        "What is kept of every turn; see [metrics.md](metrics.md#turn-records).",
        ("turn_records", "turn_records_max_mb", "turn_records_picture_px", "turn_table_steps"),
    ),
    "Updates": (
        "The loss and the optimizer step. A clip range belongs to a step size: 3e-3 suits full fine-tuning at learning rate 1e-6. At the\n"
        "learning rates of LoRA, the ratio of a turn can leave that range after the first of eight updates, and most tokens then stop\n"
        "learning. Watch `clip_ratio/region_mean` ([metrics.md](metrics.md#trls)).",
        ("importance_sampling_level", "epsilon", "epsilon_high", "loss_type", "skip_empty_updates"),
    ),
}


CODE = re.compile(r"`[^`]+`|<\w+>.*?</\w+>|(?:\w+=)?'[^'\s]*'|[\w.]*[a-z]_[\w./]*\w|\{\w+\}")
"""What is code in a help text: names with an underscore, quoted values, tags, {answer}; some of it stands in backticks already."""


def as_markdown(text: str) -> str:
    """A help text with its code in backticks."""
    return CODE.sub(lambda found: f"`{found[0].strip('`')}`", text)


def readers(option: str) -> str:
    """The estimators that read an option, or those that do not if they are fewer; nothing for options of no estimator."""
    reading = [name for name, estimator in ESTIMATORS.items() if option in options_read(estimator)]
    others = [name for name in ESTIMATORS if name not in reading]
    if reading and len(others) < len(reading):
        return "all but " + ", ".join(f"`{name}`" for name in others)
    return ", ".join(f"`{name}`" for name in reading)


def cells(option: Field) -> tuple[str, str, str, str]:
    """Name, default, text, estimators. Where the default is None, the help says after "Default:" what happens."""
    text, _, default = option.metadata["help"].partition(" Default: ")
    if option.default is not None:
        default = f"`{option.default!r}`"
    return (
        f"`{option.name}`",
        as_markdown(default.removesuffix(".") or "`None`"),
        as_markdown(text),
        readers(option.name),
    )


def table(options: list[Field]) -> str:
    """A row for each option, with the estimators if any of the options belongs to some."""
    rows = [("option", "default", "what it does", "read by"), ("---",) * 4, *map(cells, options)]
    if not any(readers(option.name) for option in options):
        rows = [row[:3] for row in rows]
    return "\n".join(f"| {' | '.join(cell or 'all' for cell in row)} |" for row in rows)


def page() -> str:
    """The text of docs/options.md."""
    options = {option.name: option for option in fields(A2TGPOConfig) if option.name in A2TGPOConfig.__annotations__}
    grouped = [name for _, names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(options):
        raise ValueError(f"GROUPS must hold each option once; it differs in {sorted(set(grouped) ^ set(options))}.")
    groups = (
        f"## {title}\n\n{note}\n\n{table([options[name] for name in names])}\n"
        for title, (note, names) in GROUPS.items()
    )
    return "\n".join([INTRODUCTION, *groups])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
