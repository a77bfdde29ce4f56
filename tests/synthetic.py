"""Runs that look like real ones, written with RecordStore in a moment: for tests and benchmarks of `a2tgpo report`."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from a2tgpo_trl.records import FOLDER, RecordStore

CAPITALS = {
    "Lyon": ("France", "Paris"),
    "Osaka": ("Japan", "Tokyo"),
    "Bergen": ("Norway", "Oslo"),
    "Kumasi": ("Ghana", "Accra"),
    "Cusco": ("Peru", "Lima"),
    "Graz": ("Austria", "Vienna"),
    "Pune": ("India", "New Delhi"),
    "Fez": ("Morocco", "Rabat"),
}
SYSTEM = "<|im_start|>system\nAnswer with the help of the tool search.<|im_end|>\n<|im_start|>user\n"
ALPHA, BETA, LOW, HIGH = 0.3, 0.3, 3e-3, 4e-3


def write_run(
    folder: Path,
    rollouts: int = 64,
    seed: int = 0,
    group_size: int = 8,
    batch_size: int = 32,
    estimator: str = "a2tgpo",
    log: bool = True,
    words: int = 0,
) -> Path:
    """
    A run whose agent learns to search twice.

    Args:
        folder (`Path`): Its `output_dir`.
        rollouts (`int`): A multiple of the batch size.
        seed (`int`): Of everything random.
        group_size, batch_size (`int`): Rollouts of a prompt, and of a batch.
        estimator (`str`): `"grpo"` writes no gains, `"bonus"` a column of its own beside them.
        log (`bool`): Whether there is a trainer state.
        words (`int`): Random words that each observation has beside what it tells.

    Returns:
        `Path`: the folder.
    """
    random = np.random.default_rng(seed)
    store = RecordStore(folder / FOLDER, 2**40)
    batches = rollouts // batch_size
    history = []
    for batch in range(batches):
        skill = batch / max(batches - 1, 1)
        groups = [_group(random, skill, group_size, estimator, words) for _ in range(batch_size // group_size)]
        rows = [
            turn | {"step": 8 * batch, "batch": batch, "group": group}
            for group, members in enumerate(groups)
            for turn in members
        ]
        store.append(rows)
        history += _log(rows, 8 * batch, skill, random)
    if log:
        state = {"global_step": 8 * batches, "log_history": history}
        (folder / f"checkpoint-{8 * batches}").mkdir(parents=True)
        (folder / f"checkpoint-{8 * batches}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def _group(random: np.random.Generator, skill: float, size: int, estimator: str, words: int) -> list[dict[str, Any]]:
    city = list(CAPITALS)[random.integers(len(CAPITALS))]
    played = [_play(random, skill, city, words) for _ in range(size)]
    outcome = np.array([rollout["reward"] for rollout in played])
    outcome = (outcome - outcome.mean()) / (outcome.std() + 1e-4)
    longest = max(len(rollout["gains"]) for rollout in played)
    gains = np.array([rollout["gains"] + [np.nan] * (longest - len(rollout["gains"])) for rollout in played])
    gains = gains.reshape(size, longest)
    members = (~np.isnan(gains)).sum(0)
    counts = np.maximum(members, 1)
    means = np.nansum(gains, 0) / counts
    normalized = (gains - means) / (np.sqrt(np.nansum((gains - means) ** 2, 0) / counts) + 1e-6)
    rows = []
    for generation, rollout in enumerate(played):
        count = len(rollout["turns"])
        for k, turn in enumerate(rollout["turns"]):
            row = rollout["shared"] | turn | {"generation": generation, "turn": k, "num_turns": count}
            rows.append(
                row
                | _credit(k, float(outcome[generation]), gains, normalized[generation], members, rollout, estimator)
            )
    return rows


def _credit(k, outcome, gains, normalized, members, rollout, estimator) -> dict[str, Any]:
    is_scored = estimator != "grpo" and k < len(rollout["gains"])
    scored = len(rollout["gains"])
    advantage, scale = outcome, 1.0
    if is_scored:
        advantage += ALPHA * float(np.sum(normalized[k:scored])) / math.sqrt(scored - k)
        scale += BETA * (2 / (1 + math.exp(-normalized[k])) - 1)
    return {
        "belief_before": rollout["beliefs"][k] if is_scored else None,
        "belief_after": rollout["beliefs"][k + 1] if is_scored else None,
        "information_gain": rollout["gains"][k] if is_scored else None,
        "normalized_gain": float(normalized[k]) if is_scored else None,
        "turn_group_size": int(members[k]) if is_scored else None,
        "advantage": advantage,
        "outcome_advantage": outcome,
        "clip_low": 1 - LOW * scale,
        "clip_high": 1 + HIGH * scale,
        "clip_scale": scale,
        "estimator_columns": {"turn_bonus": 0.25 * k} if estimator == "bonus" else {},
    }


def _play(random: np.random.Generator, skill: float, city: str, words: int) -> dict[str, Any]:
    """A rollout: up to three searches, of which the second one finds the answer."""
    country, capital = CAPITALS[city]
    searches = int(random.choice([0, 1, 2, 3], p=[0.1, 0.5 - 0.45 * skill, 0.3 + 0.5 * skill, 0.1 - 0.05 * skill]))
    wanted = [
        (city, f"{city} is a city in {country}."),
        (f"capital of {country}", f"The capital of {country} is {capital}."),
    ]
    turns, belief = [], -5.0 + float(random.normal(0, 0.3))
    beliefs = [belief]
    for k in range(searches):
        query, passage = wanted[min(k, 1)]
        failed = bool(random.random() < 0.06)
        result = "Error: the index did not answer." if failed else passage + _filling(random, words)
        seconds = float(random.lognormal(-1.5, 0.6)) + 2 * failed
        call = {
            "name": "search",
            "arguments": json.dumps({"query": query}),
            "result": result,
            "failed": failed,
            "seconds": seconds,
        }
        text = f"I look up {query}.\n<search>{query}</search>"
        observation = f"\n<result>{result}</result>\n"
        turns.append(_turn(text, observation, [call]))
        gain = float(random.normal(0, 0.2)) if failed else float(random.normal([0.6, 3.6, -0.1][k], 0.5))
        belief += gain
        beliefs.append(belief)
    found = capital if searches >= 2 and random.random() < 0.9 else country
    turns.append(_turn(f"<answer>{found}</answer><|im_end|>", None, []))
    reward = float(found == capital)
    shared = {
        "prompt": f"{SYSTEM}Question: What is the capital of the country where {city} is?<|im_end|>\n<|im_start|>assistant\n",
        "answer": capital,
        "reward": reward + 0.1,
        "rewards": {"exact_match": reward, "format": 0.1},
        "stop_reason": "answered" if searches < 3 or random.random() < 0.7 else "length",
    }
    gains = [after - before for before, after in pairwise(beliefs)]
    return {"shared": shared, "turns": turns, "beliefs": beliefs, "gains": gains, "reward": reward}


def _filling(random: np.random.Generator, words: int) -> str:
    """Words of a vocabulary of 10,000, the first ones more often, as in language."""
    return "".join(f" w{int(rank)}" for rank in 10_000 ** random.random(words))


def _turn(text: str, observation: str | None, calls: list[dict]) -> dict[str, Any]:
    return {
        "text": text,
        "num_tokens": len(text) // 4 + 1,
        "observation": observation,
        "num_observation_tokens": len(observation or "") // 4,
        "calls": calls,
    }


def _log(rows: list[dict], step: int, skill: float, random: np.random.Generator) -> list[dict[str, Any]]:
    """Eight optimizer steps; the first one has what is measured of the batch."""
    first = [row for row in rows if row["turn"] == 0]
    log = [
        {
            "step": step + 1 + k,
            "loss": float(random.normal(0, 0.05)),
            "entropy": 0.9 - 0.5 * skill + float(random.normal(0, 0.03)),
            "grad_norm": float(random.lognormal(-1, 0.3)),
            "clip_ratio/region_mean": min(0.06 * k, 1.0),
        }
        for k in range(8)
    ]
    log[0] |= {
        "reward": float(np.mean([row["reward"] for row in first])),
        "rewards/exact_match/mean": float(np.mean([row["rewards"]["exact_match"] for row in first])),
        "rewards/format/mean": 0.1,
        "turns/mean": float(np.mean([row["num_turns"] for row in first])),
        "turns/tool_mean": float(np.mean([row["num_turns"] for row in first])) - 1,
        "completions/mean_length": float(np.mean([row["num_tokens"] for row in rows])) * 2,
        "frac_reward_zero_std": float(random.uniform(0.1, 0.3)),
        "belief/first": None,
    }
    return log


def write_tree(
    folder: Path, chains: int = 10, rounds: int = 2, expanded: int = 6, turns: int = 8, seed: int = 0
) -> Path:
    """
    A run of one batch with one prompt, whose rollouts form a tree.

    Args:
        folder (`Path`): Its `output_dir`.
        chains (`int`): Rollouts from the prompt.
        rounds, expanded (`int`): Rounds of expansion, and tool turns that each writes anew.
        turns (`int`): Most turns of a rollout.
        seed (`int`): Of everything random.
    """
    random = np.random.default_rng(seed)
    nodes: list[dict[str, Any]] = []
    paths = [_branch(random, nodes, [], turns) for _ in range(chains)]
    for _ in range(rounds):
        tool_turns = sorted({number for path in paths for number in path[:-1]})
        for number in random.choice(tool_turns, size=expanded, replace=False):
            before = next(path[: path.index(number)] for path in paths if number in path)
            paths.append(_branch(random, nodes, before, turns))
    RecordStore(folder / FOLDER, 2**40).append(_tree_rows(random, nodes, paths))
    return folder


def _branch(random: np.random.Generator, nodes: list[dict[str, Any]], before: list[int], turns: int) -> list[int]:
    """Numbers of the turns of a rollout that goes on from those before."""
    path, length = list(before), int(random.integers(max(len(before) + 1, 3), turns + 1))
    for k in range(len(before), length):
        is_last = k == length - 1
        text = f"<answer>city {len(nodes)}</answer>" if is_last else f"Search {len(nodes)}.\n<search>city {k}</search>"
        parent = path[-1] if path else None
        turn = _turn(text, None if is_last else f"<result>passage {len(nodes)}</result>", [])
        nodes.append(turn | {"parent": parent, "depth": k, "surprisal": float(random.uniform(0.05, 1.4))})
        path.append(len(nodes) - 1)
    return path


def _tree_rows(
    random: np.random.Generator, nodes: list[dict[str, Any]], paths: list[list[int]]
) -> list[dict[str, Any]]:
    rewards = (random.random(len(paths)) < 0.4).astype(float)
    outcomes = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    shared = {"step": 0, "batch": 0, "group": 0, "prompt": f"{SYSTEM}Which city?", "answer": "Paris"}
    rows = []
    for generation, path in enumerate(paths):
        rollout = {
            "generation": generation,
            "num_turns": len(path),
            "reward": rewards[generation],
            "stop_reason": "answered",
        }
        for k, number in enumerate(path):
            below = [leaf for leaf, other in enumerate(paths) if number in other]
            value = float(outcomes[below].mean())
            credit = {"advantage": value, "outcome_advantage": outcomes[generation], "leaves_below": len(below)}
            credit |= {"clip_low": 0.997, "clip_high": 1.004, "clip_scale": 1.0, "estimator_columns": {"value": value}}
            place = {"turn": k, "node": number, "rewards": {"exact_match": rewards[generation]}}
            rows.append(shared | rollout | nodes[number] | credit | place)
    return rows
