"""Every command line of `a2tgpo` that README and docs show, run at toy size; every dotted name of ours that they name."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

import synthetic
import tiny
import tiny_vision
from a2tgpo_trl.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
TOY = {
    "train": "--num_generations 4 --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --steps_per_generation 2 "
    "--max_steps 2 --max_completion_length 40 --dtype float32 --report_to none",
    "eval": "--limit 2 --max_completion_length 40 --dtype float32 --report_to none",
    "report": "",
    "retriever": "",
    "recipe": "",
    "methods": "",
    "doctor": "",
}


def commands():
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(">")[0], comments=True)
                if "a2tgpo_trl.cli" in words:  # behind accelerate launch -m
                    words = ["a2tgpo", *words[words.index("a2tgpo_trl.cli") + 1 :]]
                if words[:1] == ["a2tgpo"] and words[1] != "demo":
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words)}"[:100])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The files that the docs speak of, small."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Where is {name}?", "answer": name} for name in ("Lyon", "Bern", "Oslo", "Rome")]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = [
        {"id": str(i), "contents": f'"{row["answer"]}"\n{row["answer"]} is a city.'} for i, row in enumerate(rows)
    ]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.chat_tokenizer().save_pretrained(tmp_path / "model")
    for run in ("run", "a2tgpo", "grpo", "seed-0", "seed-1"):
        synthetic.write_run(tmp_path / "outputs" / run, rollouts=32)
    served = []
    monkeypatch.setattr("a2tgpo_trl.search.HTTPSearch.retrieve", lambda self, queries: [[] for _ in queries])
    monkeypatch.setattr("a2tgpo_trl.search.retriever.serve", lambda app, listener, limits: served.append(listener))
    return served


def make_room_for_pictures(folder):
    """A model for pictures, a question about one, and a tool that returns one."""
    tiny_vision.model("gemma3").save_pretrained(folder / "model")
    tiny_vision.processor("gemma3").save_pretrained(folder / "model")
    (folder / "charts").mkdir()
    tiny_vision.picture("red").save(folder / "charts" / "17.png")
    row = {"question": "Which bar is highest?", "answer": "2019", "image": "charts/17.png"}
    (folder / "charts.jsonl").write_text(json.dumps(row) + "\n")
    lines = ['"""', "Look closer.", "", "Args:", "    part: Where.", '"""', "return Image.new('RGB', (8, 8))"]
    code = "from PIL import Image\ndef crop(part: str) -> Image.Image:\n" + "".join(f"    {line}\n" for line in lines)
    (folder / "my_file.py").write_text(code)


def make_room_for_sql(folder):
    """Questions as the recipe's preparation writes them, and a run."""
    synthetic.write_run(folder / "outputs" / "text-to-sql" / "run", rollouts=32)
    for name in ("train", "test"):
        row = json.dumps({"question": "How many cities are there?", "answer": "SELECT COUNT(*) FROM city"})
        (folder / "outputs" / "text-to-sql" / f"{name}.jsonl").write_text((row + "\n") * 4)


@pytest.mark.parametrize("words", commands())
def test_command(words, workplace, tmp_path, capsys):
    if "--conversational" in words:
        make_room_for_pictures(tmp_path)
    if any("text-to-sql" in word for word in words):
        make_room_for_sql(tmp_path)
    words = [*words, *TOY[words[0]].split()]
    if words[0] in ("train", "eval"):
        if "--model_name_or_path" in words:
            words[words.index("--model_name_or_path") + 1] = str(tmp_path / "model")
        else:
            words += ["--model_name_or_path", str(tmp_path / "model")]
    for name in ("paper-multihop", "paper-singlehop"):  # whose data is not here
        words += ["--dataset", "train.jsonl"] * (name in words)
    words += ["--use_vllm", "false"] * ("vllm-colocate" in words)  # which takes a GPU
    assert main(words) == 0, capsys.readouterr().err
    assert bool(workplace) == (words[0] == "retriever")


def test_commands_are_found():
    found = {parameter.values[0][0] for parameter in commands()}
    assert found == {"train", "eval", "report", "retriever", "recipe", "methods", "doctor"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imported_names_exist(page):
    for module, names in re.findall(r"^from (a2tgpo_trl[\w.]*) import (.+)$", page.read_text(), flags=re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_dotted_names_exist(page):
    for name in set(re.findall(r"\ba2tgpo_trl(?:\.\w+)+", page.read_text())):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for attribute in parts[cut:]:
            assert hasattr(found, attribute), name
            found = getattr(found, attribute)
