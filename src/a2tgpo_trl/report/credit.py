"""A rollout and its credit as they are shown: each medium writes these texts, and draws these numbers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

from .formats import MISSING, compact, count, fixed, is_number, pair, seconds, signed
from .measures import ROLLOUT

DRAWN = (
    "belief_before",
    "belief_after",
    "advantage",
    "outcome_advantage",
    "clip_low",
    "clip_high",
    "clip_scale",
)
"""Columns of `records.SCHEMA` whose numbers are drawn."""
DRAWN_OF_ESTIMATORS = ("value", "return")
"""As these, of an estimator's own columns."""


@dataclass(frozen=True)
class Call:
    """
    A tool call.

    Attributes:
        name, arguments (`str`): The tool, and the arguments as JSON.
        result (`str`, *optional*): What the tool returned.
        outcome (`str`): `"failed"` or `"done"`; empty where it is not known.
        seconds (`str`): How long it ran.
    """

    name: str
    arguments: str
    result: str | None
    outcome: str
    seconds: str


@dataclass(frozen=True)
class Turn:
    """
    A turn.

    Attributes:
        kind (`str`): Its tool calls by their number, or `"answer"`, or nothing.
        text (`str`): What the model wrote.
        tokens, observation_tokens (`str`): How long that is, and what it read then.
        calls (`list[Call]`): Its tool calls.
        observation (`str`, *optional*): What the model read after it; U+FFFC stands for a picture.
        images (`list[str]`): Names of the pictures in it, in their order.
        credit (`dict[str, str]`): Its credit, the estimator's own columns last: name → number, written. What no turn of the
            rollout has is left out.
        drawn (`dict[str, float]`): Numbers of `DRAWN` and `DRAWN_OF_ESTIMATORS`, `None` where there is none.
        node, parent (`int`, *optional*): Its number in the tree of its prompt, and that of the turn before it; `None` without
            a tree, and the parent of a first turn.
    """

    kind: str
    text: str
    tokens: str
    calls: list[Call]
    observation: str | None
    images: list[str]
    observation_tokens: str
    credit: dict[str, str]
    drawn: dict[str, float | None]
    node: int | None
    parent: int | None


@dataclass(frozen=True)
class Rollout:
    """
    A rollout.

    Attributes:
        question (`str`): The line of the prompt that tells it from others.
        prompt (`str`): All of it; U+FFFC stands for a picture.
        images (`list[str]`): Names of the pictures in it, in their order.
        shared (`dict[str, str]`): What all rollouts of its group share: true answer and place in the run.
        facts (`dict[str, str]`): Its number in the group, its reward, and why it ended, as far as they are known.
        turns (`list[Turn]`): Its turns.
        thumbnails (`dict[str, bytes]`): The pictures of prompt and turns by name, as far as there are some, JPEG files.
    """

    question: str
    prompt: str
    images: list[str]
    shared: dict[str, str]
    facts: dict[str, str]
    turns: list[Turn]
    thumbnails: dict[str, bytes]


def shown_rollout(
    turns: Sequence[dict[str, Any]], question: str, thumbnails: Mapping[str, bytes] = MappingProxyType({})
) -> Rollout:
    """
    What is shown of a rollout.

    Args:
        turns (`Sequence[dict]`): Its turn records, in their order; columns may be missing.
        question (`str`): What its prompt asks, in a line.
        thumbnails (`Mapping[str, bytes]`): Pictures by name, more than those of the rollout perhaps.
    """
    first = turns[0]
    place = ", ".join(f"{name} {first[name]}" for name in ("step", "batch", "group") if first.get(name) is not None)
    rewards = [f"{name} {compact(value)}" for name, value in dict(first.get("rewards") or {}).items()]
    shared = {"true answer": first.get("answer"), "place": place}
    facts = {
        "rollout": first.get("generation"),
        "reward": " · ".join([compact(first.get("reward")), *rewards]),
        "ended": first.get("stop_reason"),
    }
    answered = first.get("stop_reason") == "answered"
    credits = [_credit(turn) for turn in turns]
    known = {name for credit in credits for name, value in credit.items() if value != MISSING} | {"advantage"}
    return Rollout(
        question,
        first["prompt"] or "",
        first.get("prompt_images") or [],
        *({name: str(value) for name, value in said.items() if value not in (None, "")} for said in (shared, facts)),
        [
            _turn(turn, answered and turn is turns[-1], {name: credit[name] for name in credit if name in known})
            for turn, credit in zip(turns, credits, strict=True)
        ],
        {name: thumbnails[name] for name in _named_pictures(turns) if name in thumbnails},
    )


def _named_pictures(turns: Sequence[dict[str, Any]]) -> list[str]:
    columns = [turns[0].get("prompt_images"), *(turn.get("images") for turn in turns)]
    return [name for names in columns for name in names or []]


def _turn(turn: dict[str, Any], is_answer: bool, credit: dict[str, str]) -> Turn:
    calls = [_call(call) for call in turn.get("calls") or []]
    return Turn(
        count(len(calls), "tool call") if calls else "answer" if is_answer else "",
        turn["text"] or "",
        count(turn.get("num_tokens"), "token"),
        calls,
        turn.get("observation"),
        turn.get("images") or [],
        count(turn.get("num_observation_tokens"), "token"),
        credit,
        _drawn(turn),
        turn.get("node"),
        turn.get("parent"),
    )


def _drawn(turn: dict[str, Any]) -> dict[str, float | None]:
    own = dict(turn.get("estimator_columns") or {})
    numbers = {name: turn.get(name) for name in DRAWN} | {name: own.get(name) for name in DRAWN_OF_ESTIMATORS}
    return {name: number if is_number(number) else None for name, number in numbers.items()}


def _credit(turn: dict[str, Any]) -> dict[str, str]:
    outcome, advantage, scale = (turn.get(name) for name in ("outcome_advantage", "advantage", "clip_scale"))
    parts, size, surprisal = MISSING, turn.get("turn_group_size"), turn.get("surprisal")
    if is_number(outcome) and is_number(advantage):
        part = advantage - outcome
        parts = f"{signed(outcome)} {'−' if part < 0 else '+'} {fixed(abs(part))}"
    known = {
        "advantage": signed(advantage),
        "outcome + turn": parts,
        "turn reward": signed(turn.get("turn_reward")),
        "belief": pair([turn.get("belief_before"), turn.get("belief_after")], " → "),
        "gain": signed(turn.get("information_gain")),
        "normalised": signed(turn.get("normalized_gain")),
        "turn group": MISSING if size is None else str(int(size)),
        "clip range": pair([turn.get("clip_low"), turn.get("clip_high")], " – ", digits=4),
        "clip scale": f"×{fixed(scale)}" if is_number(scale) else MISSING,
        "surprisal": f"{fixed(surprisal)} nats" if is_number(surprisal) else MISSING,
        "leaves below": compact(turn.get("leaves_below")),
    }
    rewards = dict(turn.get("turn_rewards") or {})
    if len(rewards) > 1:  # one is the turn reward, but for its weight
        known |= {f"reward {name}": signed(value) for name, value in rewards.items()}
    return known | {name: signed(value) for name, value in dict(turn.get("estimator_columns") or {}).items()}


def _call(call: dict[str, Any]) -> Call:
    outcome = {None: "", True: "failed", False: "done"}[call.get("failed")]
    ran = seconds(call["seconds"]) if is_number(call.get("seconds")) else outcome and "did not run"
    return Call(str(call["name"]), call["arguments"] or MISSING, call.get("result"), outcome, ran)


def spread(advantages: Sequence[float | None]) -> float:
    """By how much the advantages of a rollout's turns differ."""
    known = [advantage for advantage in advantages if is_number(advantage)]
    return max(known) - min(known) if known else 0.0


@dataclass(frozen=True, order=True)
class Telling:
    """
    How telling a rollout is: of two, the one with the larger first field that differs.

    Attributes:
        differs (`bool`): Whether its turns earned different advantages.
        is_mixed (`bool`): Whether the rewards of its group differ.
        batch (`int`): Its generation batch.
        spread (`float`): By how much the advantages of its turns differ.
        place (`int`): Its number among the rollouts.
    """

    differs: bool
    is_mixed: bool
    batch: int
    spread: float
    place: int

    @property
    def why(self) -> str:
        """Why it is shown first, in a sentence."""
        of_group = " whose group has mixed rewards" if self.is_mixed else ""
        if not self.differs:
            return f"Shown first: the latest rollout{of_group}. No rollout has turns that differ in advantage."
        of = f"the rollouts of batch {self.batch}{of_group}"
        return f"Shown first: its turns differ most in advantage, by {fixed(self.spread)}, among {of}."


def find_telling(
    groups: Sequence[tuple], rewards: Sequence[float | None], advantages: Sequence[Sequence[float | None]]
) -> Telling | None:
    """
    The most telling rollout: of the last batch in which turns of a rollout from a group of mixed rewards earned different
    advantages, the one where they lie furthest apart.

    Args:
        groups (`Sequence[tuple]`): Of each rollout what names its group; batch and group come last.
        rewards (`Sequence[float]`): Of each rollout.
        advantages (`Sequence[Sequence[float]]`): Of each rollout's turns.

    Returns:
        `Telling`: the latest of equals; `None` without rollouts.
    """
    of_group = defaultdict(set)
    for group, reward in zip(groups, rewards, strict=True):
        of_group[group] |= {reward} if is_number(reward) else set()
    return max(
        (
            Telling(spread(turns) > 0, len(of_group[group]) > 1, group[-2], spread(turns), place)
            for place, (group, turns) in enumerate(zip(groups, advantages, strict=True))
        ),
        default=None,
    )


def most_telling(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The rollout to look at first, see [`find_telling`].

    Args:
        turns (`Sequence[dict]`): Turn records, rollout by rollout.

    Returns:
        `list[dict]`: those of one rollout.
    """
    rollouts = [list(rows) for _, rows in groupby(turns, key=lambda turn: tuple(turn[name] for name in ROLLOUT))]
    telling = find_telling(
        [(rows[0]["batch"], rows[0]["group"]) for rows in rollouts],
        [rows[0].get("reward") for rows in rollouts],
        [[turn["advantage"] for turn in rows] for rows in rollouts],
    )
    return rollouts[telling.place] if telling else []


def excerpt(text: str, most: int) -> str:
    """The beginning of a text, without the empty lines around it."""
    text = text.strip()
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
