"""The picture of one rollout's credit."""

import base64
import gzip
import json
import re
from dataclasses import asdict
from io import StringIO

import pytest
from matplotlib.axes import Axes
from rich.console import Console

import synthetic
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.records.rows import turn_rows
from a2tgpo_trl.report import (
    Measures,
    as_markdown,
    draw_credit,
    most_telling,
    read_runs,
    shown_rollout,
    write_page,
)
from a2tgpo_trl.report.credit import find_telling
from a2tgpo_trl.report.formats import MISSING, seconds, signed
from a2tgpo_trl.report.text import show


def turn(generation, k, advantage):
    return {"batch": 0, "group": 0, "generation": generation, "turn": k, "advantage": advantage}


def test_the_most_telling_rollout():
    even = [turn(0, 0, 1.0), turn(0, 1, 1.0)]
    uneven = [turn(1, 0, 1.0), turn(1, 1, -1.0), turn(1, 2, None)]
    assert most_telling([*even, *uneven]) == uneven
    assert most_telling([*uneven, turn(2, 0, 3.0)]) == uneven
    assert most_telling([turn(0, 0, None)]) == [turn(0, 0, None)]
    later = [turn(1, 0, 1.0), turn(1, 1, 1.0)]
    assert most_telling([*even, *later]) == later
    next_batch = [turn(0, k, advantage) | {"batch": 1} for k, advantage in enumerate((0.5, 0.0))]
    last_batch = [turn(0, 0, 1.0) | {"batch": 2}]
    assert most_telling([*uneven, *next_batch, *last_batch]) == next_batch


def test_a_group_of_mixed_rewards_tells_more():
    """Than a larger spread, or a later batch; but turns that differ tell more than it."""

    def rollout(batch, group, generation, reward, *advantages):
        place = {"batch": batch, "group": group, "generation": generation, "reward": reward}
        return [place | {"turn": k, "advantage": advantage} for k, advantage in enumerate(advantages)]

    mixed = [*rollout(0, 0, 0, 0.0, 0.0), *(telling := rollout(0, 0, 1, 1.0, 0.5, 1.0))]
    equal = [*rollout(0, 1, 0, 1.0, 0.0, 2.0), *rollout(0, 1, 1, 1.0, 0.0), *rollout(1, 0, 0, 1.0, 0.0, 2.0)]
    assert most_telling([*mixed, *equal]) == telling
    of_grpo = [
        *rollout(0, 0, 0, 1.0, 0.5, 0.5),
        *(latest := rollout(0, 0, 1, 0.0, -0.5)),
        *rollout(0, 1, 0, None, 0.0),
    ]
    assert most_telling(of_grpo) == latest
    assert most_telling([*of_grpo, *equal]) == rollout(1, 0, 0, 1.0, 0.0, 2.0)


@pytest.mark.parametrize(
    "groups, rewards, advantages, why",
    [
        (
            [(1, 0)] * 2,
            [0, 1],
            [[1.0], [1.0, 0.25]],
            "by 0.75, among the rollouts of batch 1 whose group has mixed rewards.",
        ),
        ([(1, 0)] * 2, [1, 1], [[1.0], [1.0, 0.25]], "by 0.75, among the rollouts of batch 1."),
        (
            [(1, 0)] * 2,
            [0, 1],
            [[1.0], [1.0, 1.0]],
            "the latest rollout whose group has mixed rewards. No rollout has",
        ),
        ([(1, 0)] * 2, [1, None], [[1.0], [None]], "the latest rollout. No rollout has"),
    ],
)
def test_why_a_rollout_is_shown_first(groups, rewards, advantages, why):
    telling = find_telling(groups, rewards, advantages)
    assert telling.place == 1
    assert telling.why.startswith("Shown first: ") and why in telling.why


def test_turn_rewards_are_shown_where_there_are_any():
    text = {"prompt": "?", "text": "x"}
    rewarded = turn(0, 0, 1.0) | text | {"turn_reward": 0.4, "turn_rewards": [("a", 0.5), ("b", -0.2), ("c", None)]}
    not_rewarded = (
        turn(0, 1, 1.0) | text | {"turn_reward": None, "turn_rewards": [("a", None), ("b", None), ("c", None)]}
    )
    first, second = (one.credit for one in shown_rollout([rewarded, not_rewarded], "?").turns)
    assert first == {"advantage": "+1.00", "turn reward": "+0.40", "reward a": "+0.50", "reward b": "−0.20"}
    assert second == {"advantage": "+1.00"} | dict.fromkeys(("turn reward", "reward a", "reward b"), MISSING)
    (only,) = shown_rollout([rewarded | {"turn_rewards": {"a": 0.4}}], "?").turns  # a mapping, from `play`
    assert only.credit == {"advantage": "+1.00", "turn reward": "+0.40"}
    (none,) = shown_rollout([turn(0, 0, 1.0) | text], "?").turns
    assert none.credit == {"advantage": "+1.00"}


def test_every_medium_writes_the_same(tmp_path):
    """The numbers of a turn's credit in the model are those in the terminal, on the page and in Markdown."""
    folder = synthetic.write_run(tmp_path / "run", rollouts=32, estimator="bonus")
    records = most_telling(read_turns(folder).to_pylist())
    (run,) = read_runs([folder])
    measures = Measures.of(run)
    rollout = shown_rollout(records, "Where?")
    for record, shown in zip(records, rollout.turns, strict=True):
        assert shown.credit["advantage"] == signed(record["advantage"])
        assert shown.credit["gain"] == signed(record["information_gain"])
        assert shown.credit["turn_bonus"] == signed(dict(record["estimator_columns"])["turn_bonus"])
        assert shown.credit["clip range"] == f"{record['clip_low']:.4f} – {record['clip_high']:.4f}"
        assert [call.seconds for call in shown.calls] == [seconds(call["seconds"]) for call in record["calls"]]
    table = [
        [cell.strip() for cell in row.strip("| ").split(" | ")]
        for row in as_markdown(rollout).splitlines()
        if row.startswith("|")
    ]
    assert table[0] == ["turn", *rollout.turns[0].credit]
    assert table[2:] == [[str(k), *turn.credit.values()] for k, turn in enumerate(rollout.turns)]
    console = Console(file=StringIO(), width=500)
    show([run], [measures], console)
    firsts = [row for row in read_turns(folder).to_pylist() if row["turn"] == 0]
    best = [row for row in firsts if row["reward"] == max(row["reward"] for row in firsts)][-1]
    shown = shown_rollout([best], "").turns[0].credit
    assert f"Turn 0  {shown.pop('advantage')}" in console.file.getvalue()
    assert ", ".join(f"{name} {value}" for name, value in shown.items()) in console.file.getvalue()
    assert write_page([run], [measures], tmp_path / "report.html") == 32
    packed = re.search(r'id="data-part-0">([\w+/=]+)<', (tmp_path / "report.html").read_text())[1]
    on_page = json.loads(gzip.decompress(base64.b64decode(packed)))["rollouts"]
    written = [asdict(turn) | {"drawn": None} for turn in rollout.turns]
    (drawn,) = ([turn["drawn"] for turn in one["turns"]] for one in on_page if _without_drawn(one["turns"]) == written)
    for numbers, turn in zip(drawn, rollout.turns, strict=True):
        known = {name: turn.drawn[name] for name in numbers if turn.drawn[name] is not None}
        assert {name: number for name, number in numbers.items() if number is not None} == pytest.approx(
            known, rel=1e-5
        )


def _without_drawn(turns):
    return [turn | {"drawn": None} for turn in turns]


def test_markdown_of_hostile_text():
    record = dict(prompt="x", text="```\n| a |", observation="````", answer="a|b\nc", advantage=0.5)
    lines = as_markdown(shown_rollout([record], "What\x1b?")).splitlines()
    assert lines[0] == "### What\N{REPLACEMENT CHARACTER}?"
    assert lines.count("`````") == 1 and "`````text" in lines
    assert r"true answer **a\|b c**" in lines[2]


@pytest.mark.parametrize("estimator", ["a2tgpo", "grpo"])
def test_the_picture(tmp_path, monkeypatch, estimator):
    turns = most_telling(read_turns(synthetic.write_run(tmp_path / "run", estimator=estimator)).to_pylist())
    written = []
    annotate = Axes.annotate
    monkeypatch.setattr(
        Axes, "annotate", lambda self, text, *a, **kw: written.append(text) or annotate(self, text, *a, **kw)
    )
    draw_credit(turns, tmp_path / "credit.png")
    assert (tmp_path / "credit.png").read_bytes().startswith(b"\x89PNG")
    gains = [t["information_gain"] for t in turns if t["information_gain"] is not None]
    assert [text for text in written if text.startswith("gain")] == [f"gain {signed(gain)}" for gain in gains]
    assert bool(gains) == (estimator == "a2tgpo")
    assert [text for text in written if text.startswith("×")] == [f"×{t['clip_scale']:.2f}" for t in turns]


def test_hostile_and_missing_values(tmp_path):
    (one, *_) = read_turns(synthetic.write_run(tmp_path / "run")).to_pylist()
    missing = ("belief_before", "belief_after", "advantage", "clip_scale", "answer")
    draw_credit(
        [one | {"text": "$\\frac{\x1b[31m", "prompt": "$x" * 400} | dict.fromkeys(missing)], tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").exists()


def test_played_rollouts_are_shown_as_recorded_ones_are(build, rows):
    """A number of rollouts is whole, also where nothing was written to disk yet."""
    trainer = build(per_device_eval_batch_size=4)
    turns = turn_rows(trainer.play(rows[:1], num_generations=4)[1:2], 1, 4, trainer._tokenizer.batch_decode)
    shown = shown_rollout(turns, "A question")
    assert shown.turns[0].credit["turn group"] == "3" and shown.facts["rollout"] == "1"
