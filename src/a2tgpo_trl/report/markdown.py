"""A rollout's credit as Markdown."""

import re

from ..integrations.plain import plain
from .credit import Rollout


def as_markdown(rollout: Rollout) -> str:
    """
    One rollout: its text turn by turn, and a table of the credit that each turn got.

    Args:
        rollout ([`Rollout`]): What to write.

    Returns:
        `str`: Markdown.
    """
    facts = rollout.shared | rollout.facts
    texts = [part.strip() for turn in rollout.turns for part in (turn.text, turn.observation or "") if part.strip()]
    text = plain("\n".join(texts))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    names = list(dict.fromkeys(name for turn in rollout.turns for name in turn.credit))
    rows = [["turn", *names]]
    rows += [[str(k), *(turn.credit.get(name, "") for name in names)] for k, turn in enumerate(rollout.turns)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    rows = [[_cell(text).ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(
        [
            f"### {plain(rollout.question)}",
            "",
            " · ".join(f"{name} **{_cell(value)}**" for name, value in facts.items()),
            "",
            f"{fence}text",
            text,
            fence,
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _cell(text: str) -> str:
    return " ".join(plain(text).split()).replace("|", r"\|")
