"""What was found, and how it is shown."""

from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap

from ...integrations.plain import plain

WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """
    One thing that was looked at.

    Attributes:
        name (`str`): What it is.
        value (`str`): What is there, in a few words.
        ok (`bool`, *optional*): Whether it works; `None` for what is neither good nor bad.
        note (`str`): More about it; where it does not work, why.
        mend (`str`): A command that mends it.
        required (`bool`): Whether training needs it.
    """

    name: str
    value: str
    ok: bool | None = None
    note: str = ""
    mend: str = ""
    required: bool = False

    @property
    def mark(self) -> str:
        """Two characters for the margin."""
        return {True: "ok", None: "  ", False: "!!" if self.required else "no"}[self.ok]

    def as_dict(self) -> dict[str, str | bool | None]:
        """All but the name, without control characters."""
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        return {name: plain(value) if isinstance(value, str) else value for name, value in fields.items()}


Sections = dict[str, list[Finding]]


def failing(sections: Sections) -> list[Finding]:
    """What training needs and does not have."""
    return [
        finding for findings in sections.values() for finding in findings if finding.required and finding.ok is False
    ]


def verdict(sections: Sections) -> str:
    """Whether training can run, in one line; if not, what is wrong and the commands that mend it."""
    problems = failing(sections)
    if not problems:
        return "Training can run here."
    reasons = "; ".join(f"{problem.name}: {problem.value}, {problem.note}" for problem in problems)
    commands = " && ".join(dict.fromkeys(problem.mend for problem in problems if problem.mend))
    return plain(f"Training cannot run here ({reasons})." + (f" Run: {commands}" if commands else ""))


def as_text(sections: Sections) -> str:
    """A line for each finding, at most `WIDTH` columns wide but for commands, and the verdict."""
    lines = []
    for section, findings in sections.items():
        width = max(len(finding.name) for finding in findings)
        lines += [section, *(line for finding in findings for line in _lines(finding, width)), ""]
    return plain("\n".join([*lines, verdict(sections)]))


def _lines(finding: Finding, width: int) -> list[str]:
    margin = " " * (width + 7)
    text = finding.value + (f": {finding.note}" if finding.note else "")
    first, *others = wrap(text, WIDTH - len(margin)) or [""]
    lines = [f"  {finding.mark} {finding.name:{width}}  {first}", *(margin + line for line in others)]
    return [*lines, f"{margin}$ {finding.mend}"] if finding.mend else lines


def short(path: str | Path) -> str:
    """A path as it may be shown to others: `~` for the home folder."""
    path = Path(path)
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
