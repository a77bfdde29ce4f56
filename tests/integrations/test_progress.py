"""What is shown of long work."""

import io
import logging
import re
import sys
import time
from types import ModuleType

import pytest

from a2tgpo_trl.integrations.progress import progress


class Screen(io.StringIO):
    """Standard error: a terminal or a file."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.integrations.progress.SHOWN_AFTER", 0.0)


def train(build, monkeypatch, is_terminal, **options):
    screen = Screen(is_terminal)
    trainer = build(skip_empty_updates=False, steps_per_generation=1, per_device_train_batch_size=4, **options)
    monkeypatch.setattr(sys, "stderr", screen)
    trainer._generate_and_score_completions(list(trainer.train_dataset)[:4])
    return screen.getvalue()


def test_a_terminal_sees_rollouts_and_beliefs(build, monkeypatch, at_once):
    shown = train(build, monkeypatch, is_terminal=True, disable_tqdm=False)
    assert "Rollouts:   0%" in shown and "0/4" in shown and "rollout/s" in shown
    assert "Beliefs:   0%" in shown and "forward/s" in shown
    assert shown.endswith("\r")  # the bars are gone


def test_a_log_file_sees_a_line(build, monkeypatch, at_once, caplog):
    with caplog.at_level(logging.INFO, "a2tgpo_trl"):
        assert train(build, monkeypatch, is_terminal=False) == ""
    assert re.search(r"Rollouts: 4 rollouts in \d+\.\d s", caplog.text) and "Beliefs: " in caplog.text


def test_a_library_for_notebooks_is_no_notebook(build, monkeypatch, at_once):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert train(build, monkeypatch, is_terminal=False) == ""


def test_bars_can_be_turned_off(build, monkeypatch, at_once):
    assert train(build, monkeypatch, is_terminal=True, disable_tqdm=True) == ""


def test_the_time_that_is_left(monkeypatch, at_once):
    screen = Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("Work", 4, "part", hidden=False) as bar:
        for _ in range(2):
            time.sleep(0.15)
            bar.update()
    assert re.search(r"50%\|.* 2/4 \[\d\d:\d\d<\d\d:\d\d, .*(part/s|s/part)\]", screen.getvalue())


def test_short_work_has_no_bar(monkeypatch):
    screen = Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("Work", 2, "part", hidden=False) as bar:
        bar.update(2)
    assert screen.getvalue().strip() == ""
