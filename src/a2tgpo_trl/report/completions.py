"""TRL's completions tables (`log_completions=True`) as turns, where a run has no turn records."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..integrations.plain import PICTURE
from ..records import SCHEMA
from .formats import is_number

TURNS = pa.schema([field.with_nullable(True) for field in SCHEMA])
"""As the schema of turn records; more of it can be missing."""
CREDIT = {
    "information_gain": "information_gain",
    "normalized_gain": "normalized_gain",
    "turn_advantages": "advantage",
    "clip_scale": "clip_scale",
}
"""Our columns of a completions table, a list with a number for each turn → column of a turn."""
RESULT = re.compile(r"(\s*<result>.*?</result>\s*)", re.DOTALL)


def completion_files(run: Path) -> list[Path]:
    """Completions tables of a run, oldest first."""
    return sorted(run.glob("completions/completions_*.parquet"), key=lambda file: (len(file.stem), file.stem))


def read_completions(run: Path, rewards: Collection[str] = ()) -> Iterator[pa.Table]:
    """
    Turns of a run's completions tables, a generation batch at a time.

    TRL writes its last generation batch at every logging step; repeats are left out, and so is a file that training is
    just writing.

    Args:
        run (`Path`): Its `output_dir`.
        rewards (`Collection[str]`): Names of the reward functions; if empty, every column of numbers that is no other is a
            reward.

    Returns:
        `Iterator[pyarrow.Table]`: by the columns of `records.SCHEMA`, null where a table does not tell.
    """
    before, batch = None, 0
    for file in completion_files(run):
        try:
            rows = pq.read_table(file).to_pylist()
        except pa.ArrowInvalid:
            continue
        content = json.dumps([{**row, "step": None} for row in rows], default=str)
        if rows and content != before:
            yield pa.Table.from_pylist(_turns(rows, batch, rewards), schema=TURNS)
            batch += 1
        before = content


def _turns(rows: list[dict], batch: int, rewards: Collection[str]) -> list[dict]:
    turns = []
    for group, (_, members) in enumerate(groupby(rows, key=lambda row: json.dumps(row["prompt"], default=str))):
        for generation, row in enumerate(members):
            place = {"step": row["step"], "batch": batch, "group": group, "generation": generation}
            turns += [place | turn for turn in _rollout(row, rewards)]
    sizes = Counter((turn["group"], turn["turn"]) for turn in turns if is_number(turn.get("information_gain")))
    return [turn | {"turn_group_size": sizes.get((turn["group"], turn["turn"]))} for turn in turns]


def _rollout(row: dict[str, Any], names: Collection[str]) -> list[dict]:
    rewards = {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float))
        and (name in names if names else name not in ("step", "advantage") and name not in CREDIT)
    }
    given = [value for value in rewards.values() if is_number(value)]
    pieces = split_completion(_read(row["completion"]))
    numbers = {column: list(row[name]) for name, column in CREDIT.items() if row.get(name) is not None}
    count = max([len(pieces), *map(len, numbers.values())])
    own = {name: values for name, values in row.items() if name not in CREDIT and _is_numbers(values, count)}
    shared = {
        "num_turns": count,
        "prompt": _text(_read(row["prompt"])),
        "reward": sum(given) if given else math.nan,
        "rewards": rewards,
        "advantage": row.get("advantage"),
    }
    pieces += [{"text": ""}] * (count - len(pieces))
    return [shared | {"turn": k, "estimator_columns": _at(k, own)} | pieces[k] | _at(k, numbers) for k in range(count)]


def _is_numbers(values: Any, most: int) -> bool:
    """Whether these can be numbers of so many turns; a longer list is of something else."""
    return isinstance(values, list) and len(values) <= most and any(isinstance(value, float) for value in values)


def _at(k: int, columns: dict[str, list]) -> dict[str, Any]:
    return {name: values[k] for name, values in columns.items() if k < len(values)}


def _read(cell: str | list[dict]) -> str | list[dict]:
    """A prompt or a completion; where it is messages, `A2TGPOTrainer` writes JSON, and TRL a list."""
    try:
        read = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
    is_conversation = isinstance(read, list) and all(
        isinstance(message, dict) and "role" in message for message in read
    )
    return read if is_conversation else cell


def split_completion(completion: str | list[dict]) -> list[dict]:
    """
    What a completion tells of its turns.

    Args:
        completion (`str` or `list[dict]`): Text, in which `<result>…</result>` is an observation; or messages.

    Returns:
        `list[dict]`: `text`, `observation` and `calls` of each turn.
    """
    if isinstance(completion, str):
        texts = RESULT.split(completion)
        if len(texts) > 1 and not texts[-1]:
            texts.pop()  # ends with an observation
        return [
            {"text": text, "observation": "".join(texts[i + 1 : i + 2]) or None, "calls": []}
            for i, text in list(enumerate(texts))[::2]
        ]
    turns: list[dict] = []
    for message in completion:
        if message["role"] == "assistant" or not turns:
            turns.append({"text": _content(message), "observation": None, "calls": _calls(message)})
        else:
            turns[-1]["observation"] = "\n".join(filter(None, [turns[-1]["observation"], _content(message)]))
    return turns or [{"text": ""}]


def _calls(message: dict) -> list[dict]:
    calls = message.get("tool_calls")
    functions = [_function(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [{"name": str(call.get("name")), "arguments": _arguments(call.get("arguments"))} for call in functions]


def _function(call: dict) -> dict:
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _arguments(arguments: Any) -> str:
    if isinstance(arguments, dict):  # Parquet gives each call the arguments of all tools
        arguments = {name: value for name, value in arguments.items() if value is not None}
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def _content(message: dict) -> str:
    content = message.get("content") or ""
    if isinstance(content, list) and all(isinstance(block, dict) and "type" in block for block in content):
        return "".join(map(_block, content))
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _block(block: dict) -> str:
    """A part of a content: a text, a picture, or something else as JSON."""
    if block["type"] == "image":
        return PICTURE
    if isinstance(block.get("text"), str):
        return block["text"]
    return json.dumps(block, ensure_ascii=False, default=str)


def _text(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message['role']}] {_content(message)}" for message in prompt)
