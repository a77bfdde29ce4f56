"""The panels of docs/tracking.md, and the workspace of wandb that has them."""

import re
import socket
from pathlib import Path

import pytest

from a2tgpo_trl.integrations.workspace import LAYOUT, STEPS, build, pattern
from test_docs import documented_metrics

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "tracking.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
METRICS = {
    question: [metric for metrics in panels.values() for metric in metrics] for question, panels in LAYOUT.items()
}


def test_panels_show_metrics_that_there_are():
    assert {metric for metrics in METRICS.values() for metric in metrics} <= documented_metrics()


@pytest.mark.parametrize("question", LAYOUT)
def test_the_page_has_the_panels_in_their_order(question):
    rows = re.findall(r"^\| (`.*?) \| (.+) \| (.+) \|$", SECTIONS[question], flags=re.MULTILINE)
    assert [re.findall(r"`([^`]+)`", metrics) for metrics, *_ in rows] == list(LAYOUT[question].values())


@pytest.mark.parametrize("question", LAYOUT)
def test_the_page_has_the_filter_of_each_question(question):
    (shown,) = re.findall(r"```\n(.*?)\n```", SECTIONS[question])
    assert shown == pattern(METRICS[question])


def test_the_filter_finds_what_is_logged():
    learning = re.compile(pattern(METRICS["Is it learning?"]))
    assert learning.search("train/reward") and learning.search("train/rewards/f1_reward/mean")
    assert not any(map(learning.search, ("eval/reward", "train/reward_std", "train/rewards/f1_reward/std")))
    assert re.search(pattern(["information_gain/turn_{k}"]), "train/information_gain/turn_12")


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[.+\]\((.+?)\)", PAGE)
    assert len(pictures) >= 2 and all((DOCS / picture).is_file() for picture in pictures)


def test_the_workspace_is_built_without_network(monkeypatch):
    pytest.importorskip("wandb_workspaces")
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    workspace = build("someone", "search-agent")
    assert (workspace.entity, workspace.project, workspace.settings.x_axis) == ("someone", "search-agent", STEPS)
    assert [section.name for section in workspace.sections] == list(LAYOUT) and not connected
    for section, panels in zip(workspace.sections, LAYOUT.values(), strict=True):
        assert [panel.title for panel in section.panels] == list(panels)
        for panel, metrics in zip(section.panels, panels.values(), strict=True):
            assert panel.x == STEPS
            if panel.metric_regex:
                assert panel.metric_regex == pattern(metrics) and not panel.y
            else:
                assert panel.y == [f"train/{metric}" for metric in metrics]
    sent = workspace._to_model().model_dump_json(by_alias=True)  # what `save` sends
    assert all(f'"{title}"' in sent for panels in LAYOUT.values() for title in panels) and "train/belief/last" in sent
