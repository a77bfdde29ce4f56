"""The faults of scripts/faults.toml fit the source as it is; `make trust` tries them."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import mutate

FAULTS = mutate.read_faults()


def test_every_fault_fits_the_source():
    assert mutate.unfit(FAULTS) == []
    assert len(FAULTS) >= 100


def test_what_does_not_fit_is_said():
    fault = FAULTS[0]
    found = mutate.unfit(
        [
            replace(fault, old="this stands nowhere"),
            replace(fault, name="same", new=fault.old),
            replace(fault, name="file", file="functional/none.py"),
            replace(fault, name="tests", tests=("tests/none.py::test",)),
            replace(fault, name="twice", old="torch"),
            fault,
        ]
    )
    assert [reason.split(":")[0] for reason in found] == [fault.name, "same", "file", "tests", "twice", fault.name]
    assert "stands 0 times" in found[0] and "changes nothing" in found[1] and "name of another fault" in found[-1]


def test_a_fault_that_does_not_fit_ends_with_status_2(tmp_path, capsys):
    (tmp_path / "faults.toml").write_text(
        '[[fault]]\nname = "gone"\nfile = "batch.py"\nold = "no such text"\nnew = ""\ntests = ["tests/test_mutate.py"]\n'
    )
    assert mutate.main(["--faults", str(tmp_path / "faults.toml")]) == 2
    assert "gone: its old text stands 0 times in batch.py, expected once" in capsys.readouterr().err
