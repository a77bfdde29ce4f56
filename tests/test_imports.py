"""Direction of imports: nothing heavy before it is asked for, and nothing in the training path knows its users."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import a2tgpo_trl

PACKAGE = Path(a2tgpo_trl.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
PACKAGES = {module for module, path in MODULES.items() if path.name == "__init__.py" and module != "__init__"}
# What each room of the training path may know of the others
MAY_IMPORT = {
    "functional": set(),
    "integrations": set(),
    "credit": {"functional"},
    "config": {"credit"},
    "rollout": {"integrations"},
    "batch": {"credit", "functional", "rollout"},
    "signals": {"batch", "config", "functional", "integrations", "rollout"},
    "records": {"batch", "credit", "functional", "rollout"},
    "callbacks": {"batch", "config", "records"},
    "checks": {"config", "credit", "integrations", "records", "rollout", "signals"},
    "trainer": {
        "batch",
        "callbacks",
        "checks",
        "config",
        "credit",
        "functional",
        "integrations",
        "records",
        "rollout",
        "signals",
    },
}
TRAINING_PATH = MAY_IMPORT.keys()
LEAVES = {"sql": {"rewards"}, "search": set(), "rewards": set(), "data": set(), "tools": {"rollout"}}


def room(module):
    return module.partition(".")[0]


def imported(module):
    """Absolute names that a module imports, wherever in it: inside functions and type-checking blocks too."""
    path = MODULES[module]
    package = ["a2tgpo_trl", *module.split(".")][: None if module in PACKAGES else -1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def own(module):
    """Rooms of this package that a module imports from."""
    prefix = "a2tgpo_trl."
    return {room(name.removeprefix(prefix)) for name in imported(module) if name.startswith(prefix)}


def loaded(code):
    """Top-level names in `sys.modules` after running code in a fresh interpreter."""
    code += "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import a2tgpo_trl; dir(a2tgpo_trl)", {"torch", "trl", "transformers", "datasets", "accelerate", "peft"}),
        ("import a2tgpo_trl.functional", {"trl", "transformers", "datasets", "accelerate", "peft"}),
        (
            "import a2tgpo_trl.rewards, a2tgpo_trl.data, a2tgpo_trl.sql",
            {"torch", "trl", "transformers", "datasets", "bm25s"},
        ),
        ("import a2tgpo_trl.search", {"torch", "trl", "transformers", "datasets"}),
    ],
)
def test_nothing_heavy_is_imported(code, heavy):
    names = loaded(code)
    assert "a2tgpo_trl" in names
    assert not names & heavy


def test_the_rooms_are_known():
    assert {room(module) for module in MODULES} >= TRAINING_PATH
    assert {"signals", "rollout"} <= own("trainer")  # imports are found at all
    assert own("functional") == {"functional"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module) in TRAINING_PATH))
def test_direction_of_imports(module):
    rooms = own(module)
    allowed = MAY_IMPORT[room(module)] | {room(module)}
    assert rooms <= allowed, f"{module} may import {allowed}, and imports {rooms - allowed} too"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module) in LEAVES))
def test_leaves_know_nothing_of_the_package(module):
    assert own(module) <= {room(module), *LEAVES[room(module)]}


@pytest.mark.parametrize(
    "module", sorted(module for module in MODULES if room(module) in {"demo", "report", "recipes"})
)
def test_only_the_command_knows_commands(module):
    assert "cli" not in own(module)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room(module) == "functional"))
def test_functional_imports_torch_and_nothing_else(module):
    origins = {name.partition(".")[0] for name in imported(module)}
    assert origins <= {"torch", "a2tgpo_trl"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("version", ["1.15.2", "1.17.0", "0.24.0", "2.0", "1.1.16"])
def test_other_versions_of_trl_are_refused(monkeypatch, version):
    monkeypatch.delenv("A2TGPO_ANY_TRL", raising=False)
    with pytest.raises(ImportError, match=rf"supports trl>=1.16,<1.17; trl {version} is installed.*pip install"):
        a2tgpo_trl._check_trl_version(version)


def test_another_trl_is_tried_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("A2TGPO_ANY_TRL", "1")
    with pytest.warns(UserWarning, match=r"trl 1.17.0 is installed. It is tried all the same, as A2TGPO_ANY_TRL says"):
        a2tgpo_trl._check_trl_version("1.17.0")


@pytest.mark.parametrize("version", ["1.16", "1.16.0", "1.16.3", "1.16.0.dev0"])
def test_supported_versions_of_trl(version):
    a2tgpo_trl._check_trl_version(version)


def test_version_is_checked_when_a_name_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"trl": "1.17.0"}.get)
    with pytest.raises(ImportError, match=r"trl 1\.17\.0 is installed"):
        _ = a2tgpo_trl.A2TGPOTrainer
    with pytest.raises(AttributeError, match="has no attribute 'A2POTrainer'"):
        _ = a2tgpo_trl.A2POTrainer


def test_public_names():
    assert set(a2tgpo_trl.__all__) <= set(dir(a2tgpo_trl))
    assert all(getattr(a2tgpo_trl, name).__name__ == name for name in a2tgpo_trl.__all__)
