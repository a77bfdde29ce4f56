"""Puts known faults into a copy of the source, one at a time, and runs the tests that should notice.

python scripts/mutate.py [--only WORD]

The faults stand in scripts/faults.toml: a wrong axis, a lost sign, a turn too late, a mask that is dropped. A fault that no test
notices *survives*: the tests have a gap there. The working tree is not touched.

Exit status: 0 if every fault is noticed, 1 if one survives, 2 if the answer would mean nothing: a fault no longer fits the source, a
test fails without a fault, or one cannot be run.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}  # read on import

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
    Run tests on a copy of the source, in a process of their own.

    Args:
        tests (`Sequence[str]`): As pytest takes them.
        fault ([`Fault`], *optional*): Which the copy has.

    Returns:
        `tuple[str, str]`: `"passed"`, `"failed"`, `"hung"` or `"broken"`, and the end of what pytest printed.
    """
    with tempfile.TemporaryDirectory(prefix="a2tgpo-mutate-") as folder:
        source, said = Path(folder) / "src", Path(folder) / "output.txt"
        shutil.copytree(SOURCE / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        if fault is not None:
            fault.put_into(source)
        child = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(source, tests, said))
        child.start()
        child.join(SECONDS)
        if child.exitcode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
            return "hung", f"after {SECONDS} s"
        outcome = {0: "passed", 1: "failed"}.get(child.exitcode, "broken")  # 2 and more: what cannot be imported
        return outcome, said.read_text()[-2000:]


def _run_pytest(source: Path, tests: Sequence[str], said: Path) -> None:
    """In a child of this process, which has imported what takes long to import, but not the package."""
    os.setpgid(0, 0)
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(source)  # for the processes that tests start
    sys.path.insert(0, str(source))
    sys.dont_write_bytecode = True
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    imported = Path(importlib.import_module(PACKAGE).__file__)
    sys.stdout.flush()
    os._exit(int(code) if imported.is_relative_to(source) else 3)


def import_what_takes_long() -> None:
    for name in ("torch", "transformers", "datasets", "peft", "trl.trainer.grpo_trainer"):
        importlib.import_module(name)


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
    tests = sorted({test for fault in faults for test in fault.tests})
    tests = [test for test in tests if test.split("::")[0] == test or test.split("::")[0] not in tests]
    import_what_takes_long()
    outcome, output = run_tests(tests)
    if outcome != "passed":
        return refused("Tests fail without a fault:", output)
    return try_all(faults)


if __name__ == "__main__":
    sys.exit(main())
