"""The picture of one rollout's credit."""

import pytest
from matplotlib.axes import Axes

import synthetic
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.report import draw_credit, most_telling


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
    assert [text for text in written if text.startswith("gain")] == [f"gain {gain:+.2f}" for gain in gains]
    assert bool(gains) == (estimator == "a2tgpo")
    assert [text for text in written if text.startswith("×")] == [f"× {t['clip_scale']:.2f}" for t in turns]


def test_hostile_and_missing_values(tmp_path):
    (one, *_) = read_turns(synthetic.write_run(tmp_path / "run")).to_pylist()
    missing = ("belief_before", "belief_after", "advantage", "clip_scale", "answer")
    draw_credit(
        [one | {"text": "$\\frac{\x1b[31m", "prompt": "$x" * 400} | dict.fromkeys(missing)], tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").exists()
