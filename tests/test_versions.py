"""`scripts/versions.py`: what a matrix says, and what comes of one that passes, fails, or cannot be installed."""

import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("xdist")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

versions = import_module("versions")


def test_the_oldest_are_those_that_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["peft"])]
    oldest = {
        package.name: next((s.version for s in package.specifier if s.operator == ">="), None) for package in declared
    }
    _, environments = versions.read()
    asked = {
        name: version for each in environments if "oldest" in each.name for name, version in each.versions.items()
    }
    assert asked and {name: version.removesuffix(".0") for name, version in asked.items()} == {
        name: oldest[name] for name in asked
    }


def test_tests_of_the_matrix_exist():
    tests, environments = versions.read()
    assert all((ROOT / test).exists() for test in tests)
    assert environments[0].supported and not environments[-1].supported


def test_the_large_are_tried_if_asked(folder, monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        raise versions.NotInstalled("no more than this")

    monkeypatch.setattr(versions.subprocess, "run", run)
    path = matrix(folder, ("small", True, '{ a = "1" }'), ("large", True, '{ b = "1" }\nlarge = true'))
    assert versions.main(["--file", path]) == versions.main(["--file", path, "--large"]) == 2
    assert [(command[-1], "--no-deps" in command) for command in asked] == [
        ("a==1", True), ("a==1", True), ("b==1", False)
    ]  # fmt: skip
    assert versions.main(["--file", path, "--only", "large"]) == 2 and len(asked) == 3


def matrix(folder, *environments):
    test = folder / "test_sum.py"
    test.write_text("import packaging\n\ndef test_sum():\n    assert packaging.__version__ == '24.1'\n")
    text = f'tests = ["{test}"]\n'
    for name, supported, asked in environments:
        text += f'[[environment]]\nname = "{name}"\nsupported = {str(supported).lower()}\nversions = {asked}\n'
    path = folder / "matrix.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(versions, "FOLDER", tmp_path / "environments")
    return tmp_path


@pytest.mark.parametrize(("supported", "status", "said"), [(True, 1, "FAILS"), (False, 0, "warning: fails")])
def test_what_fails_is_told(folder, capsys, supported, status, said):
    assert versions.main(["--file", matrix(folder, ("as it is", supported, "{}"))]) == status
    out = capsys.readouterr().out
    assert f"as it is (nothing of its own): {said}, 1 failed" in out and "FAILED" in out and "test_sum" in out


def test_a_run_that_ends_before_its_tests_says_why(folder, capsys):
    path = matrix(folder, ("broken", False, "{}"))
    (folder / "conftest.py").write_text("raise ImportError('no such name in this version')\n")
    assert versions.main(["--file", path]) == 0
    out = capsys.readouterr().out
    assert "no such name in this version" in out and "warning: fails, no test was run" in out


@pytest.mark.parametrize("supported", [True, False])
def test_another_trl_may_be_tried_where_it_is_not_supported(folder, capsys, monkeypatch, supported):
    monkeypatch.setenv("A2TGPO_ANY_TRL", "1")
    path = matrix(folder, ("another", supported, "{}"))
    (folder / "test_sum.py").write_text(
        f"import os\n\ndef test_it():\n    assert bool(os.environ['A2TGPO_ANY_TRL']) is {not supported}\n"
    )
    assert versions.main(["--file", path]) == 0
    assert "passes, 1 passed" in capsys.readouterr().out


def test_what_cannot_be_installed_is_an_error(folder, capsys):
    asked = '{ packaging = "0.0.0.dev12345" }'
    assert versions.main(["--file", matrix(folder, ("no such", True, asked))]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: no such: ") and "no such: cannot be installed" in said.out


def test_its_own_packages_come_first(folder):
    package = versions.FOLDER / "another-one"
    (package / "packaging").mkdir(parents=True)
    (package / "packaging" / "__init__.py").write_text("__version__ = '24.1'\n")
    environment = versions.Environment("another one", True, {"packaging": "24.1"})
    path = matrix(folder, ("another one", True, '{ packaging = "24.1" }'))
    passed, figure = environment.run(versions.read(Path(path))[0])
    assert passed and figure.startswith("1 passed")


def test_no_such_environment(capsys):
    assert versions.main(["--only", "nothing of that name"]) == 2
    assert "no environment is named 'nothing of that name': ['as in constraints.txt', " in capsys.readouterr().err
