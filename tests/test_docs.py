"""What the documentation shows is what the code does."""

import ast
import re
import runpy
from dataclasses import Field, fields
from pathlib import Path

import pytest
from peft import LoraConfig

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import ESTIMATORS
from a2tgpo_trl.functional import observation_ends, turn_ids
from a2tgpo_trl.records import SCHEMA
from a2tgpo_trl.rollout import StopReason

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name != "README.md")


def links() -> list[tuple[str, str]]:
    """Pages, and what they link to in this repository."""
    pages = ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md"))), "benchmarks/README.md"]
    targets = {
        page: re.findall(r"\]\((?!https?:)(\S+?)\)", (ROOT / page).read_text(encoding="utf-8")) for page in pages
    }
    return [(page, target) for page in pages for target in dict.fromkeys(targets[page])]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_somewhere(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.is_dir() or path.stat().st_size > 100
    assert not anchor or anchor in anchors(path)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_begins_with_what_the_index_says_of_it(name):
    title, opening, *_ = (DOCS / name).read_text(encoding="utf-8").split("\n\n")
    (purpose,) = re.findall(r"^After this page you can (.+?)\.(?: |$)", opening.replace("\n", " "))
    assert f"| [{title.removeprefix('# ')}]({name}) | {purpose} |" in (DOCS / "README.md").read_text(encoding="utf-8")


def test_the_page_of_options_is_current():
    page = runpy.run_path(str(ROOT / "scripts" / "build_options.py"))["page"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == page, "run python scripts/build_options.py"
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(A2TGPOConfig.__annotations__)


def told_defaults(option: Field, reading: set[str]) -> dict[str, object]:
    """What the help says of each estimator: "0.2 with 'trace', 1 with the others", who are the rest of those that read it."""
    value, *parts = option.metadata["help"].partition(" Default: ")[2].removesuffix(".").split(" with ")
    told = {}
    for part in parts:
        names, _, following = part.rpartition(", ") if part is not parts[-1] else (part, "", "")
        named = reading - told.keys() if names == "the others" else re.findall(r"'(\w+)'", names)
        told |= dict.fromkeys(named, ast.literal_eval(value))
        value = following
    return told


BY_ESTIMATOR = [f for f in fields(A2TGPOConfig) if re.search(r" Default: .* with '\w+'", f.metadata.get("help", ""))]


@pytest.mark.parametrize("option", BY_ESTIMATOR, ids=lambda option: option.name)
def test_defaults_by_estimator_are_those_that_are_told(option):
    configs = {name: A2TGPOConfig("unused", advantage_estimator=name, use_cpu=True, bf16=False) for name in ESTIMATORS}
    values = {name: getattr(config, option.name) for name, config in configs.items()}
    values = {name: value for name, value in values.items() if value is not None}
    assert told_defaults(option, set(values)) == values


def test_files_that_are_named_exist():
    tree = (DOCS / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    package, root = tree.split("\nnotebooks/")
    for name in re.findall(r"^  (\S+)\s{2,}", package, flags=re.MULTILINE):
        assert (ROOT / "src/a2tgpo_trl" / name).exists(), name
    for name in re.findall(r"^(\S+)\s{2,}", "notebooks/" + root, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def drawing() -> dict[str, str]:
    lines = (DOCS / "rollout.md").read_text(encoding="utf-8").split("```")[1].splitlines()
    return {line.split()[0]: line[11:] for line in lines if line and not line.startswith(" ")}


def test_the_drawing_of_a_rollout(score):
    batch, trainer = score(
        [["<search>Lyon</search>", "<answer>Paris</answer><|im_end|>"]] + [["<answer>Rome</answer><|im_end|>"]] * 3
    )
    masks = batch["completion_mask"][:1], batch["tool_mask"][:1]
    ids, (ends,) = turn_ids(*masks)[0], observation_ends(*masks)
    rows = {"tokens": "", "tool_mask": "", "turn_ids": ""}
    places = []
    for token, mask, turn, is_real in zip(
        batch["completion_ids"][0].tolist(),
        batch["tool_mask"][0].tolist(),
        ids.tolist(),
        masks[0][0].tolist(),
        strict=True,
    ):
        if not is_real:
            break
        text = trainer._tokenizer.decode(token).replace("\n", "⏎").replace("<|im_end|>", "■")
        places.append(len(rows["tokens"]) + len(text) - 1)
        rows["tokens"] += text
        rows["tool_mask"] += str(mask) * len(text)
        rows["turn_ids"] += ("·" if turn < 0 else str(turn)) * len(text)
    drawn = drawing()
    prompt, completion = drawn["tokens"].split("?", 1)
    assert prompt + "?" == "…Lyon is?"
    assert completion == rows["tokens"]
    assert drawn["tool_mask"].strip() == rows["tool_mask"]
    assert drawn["turn_ids"].strip() == rows["turn_ids"]
    start = drawn["tokens"].index("?")
    marks = drawn["beliefs"]
    assert marks.index("↑0") == start  # under the prompt's last character
    assert marks.index("↑1") == start + 1 + places[int(ends[0]) - 1]


def test_what_rollouts_are_in_python(build, rows, capsys):
    """The examples run, and every name of the tables is there."""
    text = (DOCS / "rollout.md").read_text(encoding="utf-8")
    section = text[text.index("## What it is in Python") : text.index("## Tools")]
    loop, reward = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names = {}
    exec(reward, names)
    trainer = build(reward=names["search_reward"], per_device_eval_batch_size=4)
    played = trainer.play(rows[:1], num_generations=4)
    assert [rollout.reward for rollout in played] == [1.0, 1.0, 0.0, 1.0]  # 0, 1, 3 and 2 calls
    exec(loop, {"trainer": trainer, "rows": rows[:1]})
    assert "Lyon is in France." in capsys.readouterr().out
    first, second = (re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for table in section.split("of a `Turn`"))
    for cells, thing in ((first, played[1]), (second, played[1].turns[0])):
        assert len(cells) >= 6
        assert all(hasattr(thing, name) for cell in cells for name in re.findall(r"`(\w+)`", cell))
    (credit,) = re.findall(r"^\| `credit` \|(.*)", section, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", credit)) - {"None"} <= played[1].turns[0].credit.keys()


def test_every_stop_reason_is_explained():
    text = (DOCS / "rollout.md").read_text(encoding="utf-8")
    assert all(f"| `{reason}` |" in text for reason in StopReason)


def documented_metrics() -> set[str]:
    """Names in the first columns of the tables of metrics."""
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_metric_that_a_run_logs_is_explained(build):
    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build(beta=0.01, max_steps=2, peft_config=adapter)
    trainer.train()
    *steps, summary = trainer.state.log_history
    logged = {name for row in steps for name in row} - {"step"}
    general = {
        re.sub(r"turn_\d+", "turn_{k}", name).replace("/search/", "/{name}/").replace("/correct/", "/{name}/")
        for name in logged
    }
    assert "train_runtime" in summary
    assert general == documented_metrics()


def test_every_metric_has_a_unit_and_a_meaning():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            _, unit, what, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            assert unit and what and len(rest) == 2, line


def test_turn_records_are_explained():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Turn records")[1]
    described = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", text, flags=re.MULTILINE))
    assert described == {field.name: field.metadata[b"what"].decode() for field in SCHEMA}
