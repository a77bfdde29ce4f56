"""`a2tgpo doctor`: whether training can run here, what works and what does not, to read and to paste into a bug report."""

import json
from pathlib import Path

from ..main import BadUsage, OptionParser
from . import hardware, packages
from .findings import Sections, as_text, failing, verdict

DESCRIPTION = (
    "What is installed here, what works, and why the rest does not, with the commands that mend it. Exit status 1 if training "
    "cannot run. Needs no network."
)


def run(options: list[str]) -> int:
    """Print what was found; returns the exit status, 1 if training cannot run."""
    parser = OptionParser(prog="a2tgpo doctor", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", metavar="FOLDER", help="say how a model or adapter in a folder would be trained")
    given = parser.parse_args(options)
    if given.model and not Path(given.model).is_dir():
        raise BadUsage(f"--model {given.model}: there is no such folder; a model of the Hub is downloaded first.")
    sections = examine(given.model)
    print(as_json(sections) if given.json else as_text(sections))
    return int(bool(failing(sections)))


def examine(model: str | None = None) -> Sections:
    """
    Look at everything. What needs the library is left out where that cannot be imported.

    Args:
        model (`str`, *optional*): Folder of a model to look at too.
    """
    with packages.quietly():
        sections = {"packages": packages.look(), "machine": hardware.look()}
        if failing(sections):
            return sections
        from . import abilities, models

        sections |= abilities.look({finding.name: finding for finding in sections["packages"]})
        return sections | ({"model": models.look(model)} if model else {})


def as_json(sections: Sections) -> str:
    """What was found, by section and name, with the verdict."""
    found = {
        section: {finding.name: finding.as_dict() for finding in findings} for section, findings in sections.items()
    }
    summary = {"training_can_run": not failing(sections), "verdict": verdict(sections)}
    return json.dumps(summary | {"sections": found}, indent=2, ensure_ascii=False)
