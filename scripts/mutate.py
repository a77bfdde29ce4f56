"""Puts known faults into a copy of the source, one at a time, and runs the tests that should notice.

python scripts/mutate.py [--only WORD]

The faults stand in scripts/faults.toml: a wrong axis, a lost sign, a turn too late, a mask that is dropped. A fault that no test
notices *survives*: the tests have a gap there. The working tree is not touched.

Exit status: 0 if every fault is noticed, 1 if one survives, 2 if the answer would mean nothing: a fault no longer fits the source, a
test fails without a fault, or one cannot be run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PACKAGE = "a2tgpo_trl"
FAULTS = Path(__file__).with_name("faults.toml")
SECONDS = 900
"""After which tests that hang have noticed a fault too."""


@dataclass(frozen=True)
class Fault:
    """
    What a slip of the pen would have made of the source.

    Args:
        name (`str`): What is wrong, in words.
        file (`str`): Of the package.
        old (`str`): Text that stands in the file exactly once.
        new (`str`): What stands there instead.
        tests (`list[str]`): Files of tests, or tests in them, that should notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def why_not(self) -> str | None:
        """Why the fault cannot be put into the source, or `None` if it can."""
        path = SOURCE / PACKAGE / self.file
        found = path.read_text().count(self.old) if path.is_file() else 0
        if self.old == self.new:
            return "changes nothing"
        missing = [test for test in self.tests if not (ROOT / test.split("::")[0]).is_file()]
        if missing:
            return f"names tests that do not exist: {', '.join(missing)}"
        return None if found == 1 else f"its old text stands {found} times in {self.file}, expected once"

    def put_into(self, source: Path) -> None:
        path = source / PACKAGE / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def read_faults(file: Path = FAULTS) -> list[Fault]:
    """The faults of a file."""
    rows = tomllib.loads(file.read_text())["fault"]
    return [Fault(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def unfit(faults: Sequence[Fault]) -> list[str]:
    """What keeps faults from being tried, a line each."""
    reasons = [(fault.name, fault.why_not()) for fault in faults]
    names = [fault.name for fault in faults]
    reasons += [(name, "has the name of another fault") for name in sorted(set(names)) if names.count(name) > 1]
    return [f"{name}: {reason}" for name, reason in reasons if reason]


def run_tests(tests: Sequence[str], fault: Fault | None = None) -> tuple[str, str]:
    """
    Run tests on a copy of the source.

    Args:
        tests (`Sequence[str]`): As pytest takes them.
        fault ([`Fault`], *optional*): Which the copy has.

    Returns:
        `tuple[str, str]`: `"passed"`, `"failed"`, `"hung"` or `"broken"`, and the end of what pytest printed.
    """
    with tempfile.TemporaryDirectory(prefix="a2tgpo-mutate-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(SOURCE / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        if fault is not None:
            fault.put_into(source)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "hung", f"after {SECONDS} s"
    outcome = {0: "passed", 1: "failed"}.get(done.returncode, "broken")  # 2 and more: a module that cannot be imported
    return outcome, (done.stdout + done.stderr)[-2000:]


def uses_the_copy() -> bool:
    """Whether an interpreter with `PYTHONPATH` imports the package from there, not from where it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PACKAGE).mkdir()
        (Path(folder) / PACKAGE / "__init__.py").write_text("")
        command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
        environment = os.environ | {"PYTHONPATH": folder}
        found = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    return found.startswith(folder)


def try_all(faults: Sequence[Fault]) -> int:
    """Print a line for each fault and the sum; the exit status."""
    survivors, broken = [], []
    for number, fault in enumerate(faults, start=1):
        start = time.perf_counter()
        outcome, output = run_tests(fault.tests, fault)
        said = {"passed": "SURVIVED", "failed": "noticed", "hung": "noticed (tests hung)"}.get(outcome, "BROKEN")
        seconds = time.perf_counter() - start
        print(f"{number:3}/{len(faults)}  {said:9} {seconds:5.0f} s  {fault.file}: {fault.name}", flush=True)
        survivors += [fault] * (outcome == "passed")
        if outcome == "broken":
            broken.append(fault)
            print(output)
    noticed = len(faults) - len(survivors) - len(broken)
    print(f"\n{noticed} of {len(faults)} faults noticed, {len(survivors)} survived, {len(broken)} could not be tried")
    for fault in survivors:
        print(f"  survived: {fault.file}: {fault.name}")
    return 2 if broken else int(bool(survivors))


def refused(*reasons: str) -> int:
    print("\n".join(reasons), file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="faults whose name or file has this word")
    parser.add_argument("--faults", type=Path, default=FAULTS, help="a file of faults, as scripts/faults.toml")
    given = parser.parse_args(arguments)
    faults = [fault for fault in read_faults(given.faults) if given.only in f"{fault.file} {fault.name}"]
    if not faults:
        return refused(f"No fault of {given.faults} has {given.only!r} in its name or file.")
    if reasons := unfit(faults):
        return refused("Mend these faults, the source has moved on:", *reasons)
    if not uses_the_copy():
        return refused(f"{PACKAGE} is imported from elsewhere than PYTHONPATH: install it by `pip install -e .`.")
    tests = sorted({test for fault in faults for test in fault.tests})
    outcome, output = run_tests(tests)
    if outcome != "passed":
        return refused("Tests fail without a fault:", output)
    return try_all(faults)


if __name__ == "__main__":
    sys.exit(main())
