"""A report as one HTML file that asks for nothing else."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from .charts import Chart, make_charts
from .measures import Measures
from .palette import DARK, LIGHT
from .rollouts import Rollout, choose_groups, read_rollouts
from .runs import Run
from .summary import PROGRESS, by_tool, notes, progress

SCRIPTS = ("dom", "data", "theme", "charts", "overview", "filter", "list", "turns", "rollout", "main")
"""Files of `assets/`, in the order in which they are put together."""
PART = 200
"""Rollouts whose texts are unpacked together."""


def write_page(
    runs: Sequence[Run],
    measures: Sequence[Measures],
    file: Path,
    limit: int | None = None,
    charts: Sequence[Chart] | None = None,
) -> int:
    """
    Write the page.

    What a model, a tool or a dataset wrote is in it only as gzip in base64; scripts put it into the document as text, and
    the page forbids scripts that are not its own as well as every request.

    Args:
        runs, measures (`Sequence`): Of each run.
        file (`Path`): HTML file; replaced once the page is complete.
        limit (`int`, *optional*): About how many rollouts of each run to browse; charts are of all.
        charts (`Sequence[Chart]`, *optional*): What [`make_charts`] gives for them; by default it is called.

    Returns:
        `int`: rollouts in the browser.
    """
    index: dict[str, list] = {name: [] for name in _entry(None)}
    parts = []
    chosen = [choose_groups(measured, limit) for measured in measures]
    for part in _parts(rollout for i, run in enumerate(runs) for rollout in read_rollouts(run, i, chosen[i])):
        for rollout in part:
            for name, value in _entry(rollout).items():
                index[name].append(value)
        parts.append(_data(f"part-{len(parts)}", _texts(part)))
    charts = make_charts(runs, measures) if charts is None else charts
    overview = _overview(runs, measures, charts, index["run"])
    _write(file, [_data("overview", overview), _data("index", index), *parts])
    return len(index["run"])


def _entry(rollout: Rollout | None) -> dict[str, Any]:
    """What the list of rollouts shows of one, without its texts."""
    names = ("run", "step", "batch", "group", "generation", "question", "answer", "reward", "stop_reason")
    entry = {name: rollout and getattr(rollout, name) for name in names}
    return entry | {"advantages": rollout and [turn["advantage"] for turn in rollout.turns]}


def _texts(part: Sequence[Rollout]) -> dict[str, Any]:
    """The rest; a prompt once for all rollouts that have it."""
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(rollout.prompt for rollout in part))}
    rollouts = [{"prompt": prompts[one.prompt], "rewards": one.rewards, "turns": one.turns} for one in part]
    return {"prompts": list(prompts), "rollouts": rollouts}


def _parts(rollouts: Iterator[Rollout]) -> Iterator[list[Rollout]]:
    part: list[Rollout] = []
    for rollout in rollouts:
        part.append(rollout)
        if len(part) == PART:
            yield part
            part = []
    if part:
        yield part


def _overview(
    runs: Sequence[Run], measures: Sequence[Measures], charts: Sequence[Chart], shown: list[int]
) -> dict[str, Any]:
    return {
        "palette": {"light": LIGHT, "dark": DARK},
        "part": PART,
        "scale": credit_scale(measures),
        "progress": PROGRESS,
        "charts": [asdict(chart) for chart in charts],
        "runs": [
            {
                "name": run.name,
                "source": run.source,
                "rollouts": len(measured.rollouts),
                "shown": shown.count(number),
                "notes": notes(run, measured),
                "progress": progress(run, measured, 8),
                "tools": by_tool(measured),
            }
            for number, (run, measured) in enumerate(zip(runs, measures, strict=True))
        ],
    }


def credit_scale(measures: Sequence[Measures]) -> float:
    """The magnitude of advantages at which colours are full: that of all but one turn in fifty is below it."""
    scale = pd.concat([measured.turns["advantage"].abs() for measured in measures]).quantile(0.98)
    return float(f"{scale:.3g}") if scale > 0 else 1.0


def _data(name: str, content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)).decode()
    return f'<script type="text/plain" id="data-{name}">{packed}</script>\n'


def _write(file: Path, data: Sequence[str]) -> None:
    assets = resources.files(__package__) / "assets"
    library = _read(resources.files(__package__) / "vendor" / "chart.umd.min.js")
    library = library.partition("//# sourceMappingURL")[0]
    own = '"use strict";\n' + "\n".join(_read(assets / f"{name}.js") for name in SCRIPTS)
    style = _read(assets / "style.css")
    allowed = f"script-src {_digest(library)} {_digest(own)}; style-src {_digest(style)}"
    pieces = {
        "policy": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        "style": style,
        "data": "".join(data),
        "library": library,
        "script": own,
    }
    page = re.sub(f"@({'|'.join(pieces)})", lambda place: pieces[place[1]], _read(assets / "page.html"))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    partial.replace(file)


def _read(file: Any) -> str:
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(text: str) -> str:
    """As a content security policy names a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
