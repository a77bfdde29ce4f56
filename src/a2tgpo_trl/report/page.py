"""A report as one HTML file that asks for nothing else."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from .charts import Chart, looks, make_charts, seed_groups
from .credit import Rollout, Turn, find_telling, spread
from .curves import SECTIONS
from .formats import compact, fixed, is_number
from .measures import Measures
from .palette import DARK, DASHES, LIGHT
from .rollouts import choose_groups, read_rollouts
from .runs import Run
from .summary import PROGRESS, notes, progress, tables

INDEX = (
    *("run", "step", "batch", "group", "generation", "stop_reason", "answer", "question"),
    *("reward", "written", "advantages", "credits", "largest", "spread"),
)
"""Columns of the list of rollouts, see [`_entry`]."""
SCRIPTS = ("dom", "data", "theme", "charts", "overview", "filter", "list", "turns", "tree", "rollout", "main")
STYLES = ("base", "style")
"""Files of `assets/`, in the order in which they are put together."""
DRAWN = ("belief_before", "belief_after", "advantage", "value")
"""What the scripts draw of a turn's numbers."""
PART = 200
"""Rollouts whose texts are unpacked together."""
MEGABYTE = 2**20
PICTURES_MB = 32.0
"""Of pictures that a page has by default."""


def write_page(
    runs: Sequence[Run],
    measures: Sequence[Measures],
    file: Path,
    limit: int | None = None,
    charts: Sequence[Chart] | None = None,
    pictures_mb: float = PICTURES_MB,
) -> int:
    """
    Write the page.

    What a model, a tool or a dataset wrote is in it only as gzip in base64; scripts put it into the document as text, and
    the page forbids scripts that are not its own as well as every request. Pictures are those that turn records keep, JPEG files.

    Args:
        runs, measures (`Sequence`): Of each run.
        file (`Path`): HTML file; replaced once the page is complete.
        limit (`int`, *optional*): About how many rollouts of each run to browse; charts are of all.
        charts (`Sequence[Chart]`, *optional*): What [`make_charts`] gives for them; by default it is called.
        pictures_mb (`float`): Most megabytes of pictures. Above that every second group of rollouts goes without, until they fit.

    Returns:
        `int`: rollouts in the browser.
    """
    index: dict[str, list] = {name: [] for name in INDEX}
    packed, pictures = [], _GroupPictures()
    for part in _parts(_rollouts(runs, measures, limit)):
        for entry, rollout in part:
            pictures.add(len(index["run"]), entry, rollout)
            for name, value in entry.items():
                index[name].append(value)
        packed.append(_data(f"part-{len(packed)}", _texts([rollout for _, rollout in part])))
    charts = make_charts(runs, measures) if charts is None else charts
    overview = _overview(runs, measures, charts, index)
    packed += [_data(f"pictures-{place}", files) for place, files in pictures.within(pictures_mb * MEGABYTE).items()]
    _write(file, [_data("overview", overview), _data("index", index), *packed])
    return len(index["run"])


class _GroupPictures:
    """The pictures of each group of rollouts, once, by the place of its first rollout."""

    def __init__(self):
        self._places: dict[tuple, int] = {}
        self._files: dict[int, dict[str, bytes]] = {}

    def add(self, place: int, entry: dict[str, Any], rollout: Rollout) -> None:
        first = self._places.setdefault((entry["run"], entry["batch"], entry["group"]), place)
        if rollout.thumbnails:
            self._files.setdefault(first, {}).update(rollout.thumbnails)

    def within(self, most_bytes: float) -> dict[int, dict[str, str]]:
        """Those of all groups, or of every second one, and so on, so that they have at most so many bytes; in base64."""
        kept, sizes = [*self._files], {place: sum(map(len, files.values())) for place, files in self._files.items()}
        while kept and sum(sizes[place] for place in kept) > most_bytes:
            kept = kept[::-2][::-1] if len(kept) > 1 else []
        return {
            place: {name: base64.b64encode(file).decode() for name, file in self._files[place].items()}
            for place in kept
        }


def _rollouts(runs: Sequence[Run], measures: Sequence[Measures], limit: int | None) -> Iterator[tuple[dict, Rollout]]:
    for number, (run, measured) in enumerate(zip(runs, measures, strict=True)):
        for turns, rollout in read_rollouts(run, choose_groups(measured, limit)):
            yield _entry(number, turns[0], rollout), rollout


def _entry(run: int, first: dict[str, Any], rollout: Rollout) -> dict[str, Any]:
    """What the list shows of a rollout, and filters and sorts it by."""
    reward = first["reward"] if is_number(first["reward"]) else None
    advantages = [_rounded(turn.drawn["advantage"]) for turn in rollout.turns]
    return {
        "run": run,
        **{name: first[name] for name in ("step", "batch", "group", "generation", "stop_reason", "answer")},
        "question": rollout.question,
        "reward": _rounded(reward),
        "written": compact(reward),
        "advantages": advantages,
        "credits": [turn.credit["advantage"] for turn in rollout.turns],
        "largest": max((abs(advantage) for advantage in advantages if advantage is not None), default=0),
        "spread": spread(advantages),
    }


def _texts(part: Sequence[Rollout]) -> dict[str, Any]:
    """The rest; a prompt once for all rollouts that have it."""
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(rollout.prompt for rollout in part))}
    return {
        "prompts": list(prompts),
        "rollouts": [
            {
                "prompt": prompts[rollout.prompt],
                "images": rollout.images,
                "shared": rollout.shared,
                "facts": rollout.facts,
                "turns": [_turn(turn) for turn in rollout.turns],
            }
            for rollout in part
        ],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return vars(turn) | {"drawn": {name: _rounded(turn.drawn[name]) for name in DRAWN}}


def _rounded(number: float | None) -> float | None:
    return number and float(f"{number:.6g}")


def _parts(rollouts: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(rollouts, PART)):
        yield part


def _overview(
    runs: Sequence[Run], measures: Sequence[Measures], charts: Sequence[Chart], index: dict[str, list]
) -> dict[str, Any]:
    names = [run.name for run in runs]
    colors = {run: place for place, numbers in enumerate(seed_groups(names).values()) for run in numbers}
    scale = credit_scale(measures)
    groups = list(zip(index["run"], index["batch"], index["group"], strict=True))
    telling = find_telling(groups, index["reward"], index["advantages"])
    return {
        "palette": {"light": LIGHT, "dark": DARK, "dashes": DASHES},
        "part": PART,
        "scale": scale,
        "scale_ends": [fixed(-scale), fixed(scale, sign="+")],
        "telling": telling and {"place": telling.place, "why": telling.why},
        "progress": ["Steps", *PROGRESS],
        "sections": SECTIONS,
        "charts": [_chart(chart, names) for chart in charts],
        "runs": [
            {
                "name": run.name,
                "color": colors[number],
                "source": run.source,
                "rollouts": len(measured.rollouts),
                "shown": index["run"].count(number),
                "notes": notes(run, measured),
                "progress": progress(run, measured),
                "tables": tables(measured),
            }
            for number, (run, measured) in enumerate(zip(runs, measures, strict=True))
        ],
    }


def _chart(chart: Chart, names: Sequence[str]) -> dict[str, Any]:
    pairs = zip(chart.series, looks(chart, names), strict=True)
    series = [vars(series) | vars(look) for series, look in pairs]
    return vars(chart) | {"series": series, "is_from_zero": chart.is_from_zero}


def credit_scale(measures: Sequence[Measures]) -> float:
    """The magnitude of advantages at which colours are full: that of all but one turn in fifty is below it."""
    scale = pd.concat([measured.turns["advantage"].abs() for measured in measures]).quantile(0.98)
    return float(f"{scale:.3g}") if scale > 0 else 1.0


def _data(name: str, content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=vars)
    packed = base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)).decode()
    return f'<script type="text/plain" id="data-{name}">{packed}</script>\n'


def _write(file: Path, data: Sequence[str]) -> None:
    assets = resources.files(__package__) / "assets"
    library = _read(resources.files(__package__) / "vendor" / "chart.umd.min.js")
    library = library.partition("//# sourceMappingURL")[0]
    own = '"use strict";\n' + "\n".join(_read(assets / f"{name}.js") for name in SCRIPTS)
    style = "\n".join(_read(assets / f"{name}.css") for name in STYLES)
    allowed = f"script-src {_digest(library)} {_digest(own)}; style-src {_digest(style)}"
    pieces = {
        "policy": f"default-src 'none'; {allowed}; img-src data:; base-uri 'none'; form-action 'none'",
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
