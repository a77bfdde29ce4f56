"""Runs the tests that touch TRL, transformers and peft with the oldest and the newest of them; `make versions`.

python scripts/versions.py [--only WORD] [--large] [--file MATRIX]

Each environment of scripts/versions.toml is a folder in .venv-versions with the packages that differ; all others are those of the
environment that runs this. Another torch is 5 GB with what it depends on, and is tried with `--large`. Python is the one that runs this.

Exit status: 0 if all supported environments pass, 1 if one of them fails, 2 if any cannot be installed. What fails in the others is
printed and does not count.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_suffix(".toml")
FOLDER = ROOT / ".venv-versions"
LATEST = "latest"
SUM = re.compile(r"\b\d+ (passed|failed|errors?|skipped)\b.* in [\d.]+s")


class NotInstalled(RuntimeError):
    """pip did not install what an environment asks for."""


@dataclass(frozen=True)
class Environment:
    """
    Versions to try.

    Args:
        name (`str`): What is special, in words.
        supported (`bool`): Whether it has to work.
        versions (`dict[str, str]`): Package → version, or `"latest"`.
        large (`bool`): Whether what they depend on comes with them, in any version that they take, however large.
    """

    name: str
    supported: bool
    versions: dict[str, str]
    large: bool = False

    @property
    def folder(self) -> Path:
        """Where its own packages are."""
        return FOLDER / re.sub(r"\W+", "-", self.name)

    def install(self) -> None:
        """
        Put its own packages there, without those that they depend on unless it is large.

        Raises:
            NotInstalled: If pip fails.
        """
        # pip would leave packages that are not asked any more, and the metadata of other versions
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.versions:
            return
        asked = [name if version == LATEST else f"{name}=={version}" for name, version in self.versions.items()]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        alone = [] if self.large else ["--no-deps"]
        done = subprocess.run(
            [*pip, *alone, "--upgrade", "--target", str(self.folder), *asked], capture_output=True, text=True
        )
        if done.returncode:
            raise NotInstalled(f"{self.name}: {done.stderr.strip().splitlines()[-1]}")

    def installed(self) -> dict[str, str]:
        """Package → version, of those that it asks for."""
        found = metadata.distributions(path=[str(self.folder)]) if self.folder.exists() else ()
        return {each.name: each.version for each in found if each.name in self.versions}

    def run(self, tests: Sequence[str]) -> tuple[bool, str]:
        """Whether the tests pass, and the sum that pytest said; failures are printed, or the end of what was said."""
        path = os.pathsep.join([str(self.folder), str(ROOT / "src")])
        command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not processes", "--tb", "line", *tests]
        variables = os.environ | {"PYTHONPATH": path, "A2TGPO_ANY_TRL": "" if self.supported else "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        lines = done.stdout.strip().splitlines()
        if done.returncode:
            told = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-10:]
            print("\n".join(f"  {line}" for line in told), flush=True)
        sums = [line for line in lines if SUM.search(line)]  # libraries may print more while they end
        return done.returncode == 0, sums[-1].strip("= ") if sums else "no test was run"


def read(path: Path = FILE) -> tuple[list[str], list[Environment]]:
    """The tests, and the environments."""
    matrix = tomllib.loads(path.read_text(encoding="utf-8"))
    return matrix["tests"], [Environment(**entry) for entry in matrix["environment"]]


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="environments whose names have this word")
    parser.add_argument("--large", action="store_true", help="also those of gigabytes")
    parser.add_argument("--file", type=Path, default=FILE, help="another matrix")
    options = parser.parse_args(args)
    tests, environments = read(options.file)
    tried = [environment for environment in environments if options.large or not environment.large]
    chosen = [environment for environment in tried if options.only in environment.name]
    if not chosen:
        hint = "" if options.large else ", and with --large others"
        print(
            f"error: no environment is named {options.only!r}: {[each.name for each in tried]}{hint}", file=sys.stderr
        )
        return 2
    rows, status = [], 0
    for environment in chosen:
        print(f"{environment.name}:", flush=True)
        try:
            environment.install()
        except NotInstalled as error:
            print(f"error: {error}", file=sys.stderr)
            rows.append(f"{environment.name}: cannot be installed")
            status = 2
            continue
        passed, figure = environment.run(tests)
        said = "passes" if passed else "FAILS" if environment.supported else "warning: fails"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(environment.installed().items()))
        rows.append(f"{environment.name} ({versions or 'nothing of its own'}): {said}, {figure}")
        if environment.supported and not passed:
            status = status or 1
    print("\n".join(rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
