"""Every page of the documentation is in the index and says what it is for; its links, files and options are those that there are."""

import ast
import re
import runpy
from dataclasses import Field, fields
from pathlib import Path

import pytest

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import ESTIMATORS
from conftest import needed_by

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
    configs = {
        name: A2TGPOConfig("unused", advantage_estimator=name, use_cpu=True, bf16=False, **needed_by(name))
        for name in ESTIMATORS
    }
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
