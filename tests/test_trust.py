"""docs/trust.md says what `make trust` tries, and names tests that exist."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import mutate

import trust

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_promise_is_on_the_page_with_its_tests():
    told = PAGE.lower()
    for promise in trust.PROMISES:
        assert promise.name.lower() in told
        assert all(test in PAGE and (ROOT / test).is_file() for test in promise.tests)


def test_what_the_page_names_exists():
    named = re.findall(r"`((?:tests|scripts|benchmarks)/[\w/.]+)`", PAGE)
    assert len(named) > 10 and all((ROOT / path).exists() for path in named)
    assert f"of {len(mutate.read_faults())} faults" in PAGE


def test_slow_tests_are_left_out_of_make_test():
    rules = dict(re.findall(r"^([\w-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
    assert "--ignore tests/trust" in rules["test"] and "scripts/trust.py" in rules["trust"]
    slow = {f"tests/trust/{file.name}" for file in (ROOT / "tests" / "trust").glob("test_*.py")}
    assert slow <= {test for promise in trust.PROMISES for test in promise.tests}


def test_what_came_of_promises_is_a_table(capsys, monkeypatch):
    outcomes = {"first": (True, "3 of 3"), "second": (False, "1 of 2")}
    monkeypatch.setattr(trust, "PROMISES", [trust.Promise(name, ("tests/test_trust.py",)) for name in outcomes])
    monkeypatch.setattr(trust, "run_tests", lambda promise: outcomes[promise.name])
    assert trust.main([]) == 1
    assert re.search(
        r"\| first \| kept \| 0 s \| 3 of 3 \|\n\| second \| BROKEN \| 0 s \| 1 of 2 \|", capsys.readouterr().out
    )
    assert trust.main(["--only", "first"]) == 0
