"""Runs what is too slow for `make test`, and prints what came of each promise; `make trust`, under an hour on two cores.

python scripts/trust.py [--only WORD]

docs/trust.md says what each promise means. Exit status: 0 if all are kept, else 1.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Promise:
    """
    Something that is said of the library, and what tries it.

    Args:
        name (`str`): What is promised.
        tests (`list[str]`): For pytest; without any, faults are put into the source.
        parallel (`bool`): Whether the tests may share the machine with each other.
    """

    name: str
    tests: tuple[str, ...] = ()
    parallel: bool = True


PROMISES = [
    Promise("faults put into the source are noticed"),
    Promise(
        "equations hold for any masks, counts and values",
        ("tests/functional/test_properties.py", "tests/credit/test_credit_properties.py"),
    ),
    Promise("NaN and infinity reach no weight", ("tests/test_broken_numbers.py",)),
    Promise("nothing that others wrote is run or fetched", ("tests/test_security.py",)),
    Promise('`advantage_estimator="grpo"` is TRL\'s `GRPOTrainer`', ("tests/trust/test_identity.py",)),
    Promise("any split over processes makes the same update", ("tests/trust/test_split.py",), parallel=False),
    Promise(
        "a killed run ends as if it had not been",
        ("tests/test_resuming.py", "tests/trust/test_kill.py"),
        parallel=False,
    ),
    Promise("adapters are what is trained, measured and exported", ("tests/trust/test_adapters.py",)),
    Promise("a long run leaks nothing", ("tests/trust/test_soak.py",), parallel=False),
    Promise("a retriever withstands hostile requests", ("tests/trust/test_retriever_under_fire.py",), parallel=False),
    Promise("surviving faults are reported", ("tests/trust/test_faults_are_tried.py",), parallel=False),
]


def try_faults() -> tuple[bool, str]:
    """Whether all faults are noticed, and how many are."""
    done = subprocess.run(
        [sys.executable, "scripts/mutate.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    figure = re.search(r"\d+ of \d+ faults noticed", done.stdout)
    return done.returncode == 0, figure[0] if figure else "could not be tried"


def run_tests(promise: Promise) -> tuple[bool, str]:
    """Whether the tests pass, and how many there are, with what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        workers = ["-n", "2"] if promise.parallel else []
        command = [sys.executable, "-m", "pytest", *workers, "--junitxml", str(report), *promise.tests]
        passed = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRUST": "1"}).returncode == 0
        root = ElementTree.parse(report).getroot() if report.exists() else ElementTree.Element("none")
    cases = list(root.iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    measured = [
        f"{_short(case.get('name'))}: {found.get('name').replace('_', ' ')} {found.get('value')}"
        for case in cases
        for found in case.iter("property")
    ]
    return passed and bool(cases), "; ".join([f"{len(cases) - failed} of {len(cases)} tests passed", *measured])


def _short(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="promises with this word")
    only = parser.parse_args(arguments).only
    promises = [promise for promise in PROMISES if only in promise.name]
    if not promises:
        parser.error(f"no promise has {only!r} in its name")
    rows = []
    for promise in promises:
        print(f"\n==== {promise.name}", flush=True)
        start = time.perf_counter()
        kept, figure = run_tests(promise) if promise.tests else try_faults()
        rows.append((promise.name, "kept" if kept else "BROKEN", f"{time.perf_counter() - start:.0f} s", figure))
    print("\n| promise | result | time | figure |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return int(any(result != "kept" for _, result, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
