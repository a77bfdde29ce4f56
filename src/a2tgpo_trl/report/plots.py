"""The charts as PNG files, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from ..integrations.plain import plain
from .charts import Chart, Series
from .palette import LIGHT

DASHES = ("-", "--", ":", "-.", (0, (1, 4)), (0, (8, 4)), (0, (4, 6)), (0, (9, 2, 2, 2)))
SIZE = (6.4, 4.2)
"""Inches."""


def write_plots(charts: Sequence[Chart], names: Sequence[str], folder: Path) -> list[Path]:
    """
    Draw each chart into a file called by its key.

    Args:
        charts (`Sequence[Chart]`): What to draw.
        names (`Sequence[str]`): Of the runs.
        folder (`Path`): Made if it is not there.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--png needs matplotlib: pip install 'a2tgpo-trl[report]'.") from error
    matplotlib.use("Agg")  # before pyplot is imported, so that no display is asked for
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in charts:
        with matplotlib.rc_context({"text.parse_math": False}):  # names of runs and tools are no formulas
            figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
            _draw(axis, chart, [plain(name) for name in names])
            files.append(folder / f"{chart.key}.png")
            figure.savefig(files[-1], dpi=130)
            plt.close(figure)
    return files


def _draw(axis, chart: Chart, names: Sequence[str]) -> None:
    is_by_run = len(names) > 1 and chart.run is None
    kinds = list(dict.fromkeys(series.name for series in chart.series))
    below = [0.0] * len(chart.series[0].x)
    for number, series in enumerate(chart.series):
        style = {"color": LIGHT[(series.run if is_by_run else number) % len(LIGHT)]}
        style["label"] = _label(series, names, is_by_run)
        if chart.kind == "bars":
            _bars(axis, series, number, len(chart.series), style)
        elif chart.kind == "shares":
            style["color"] = LIGHT[(-1 - number) % len(LIGHT)]
            axis.bar(range(len(series.x)), series.y, width=0.94, bottom=below, **style)
            below = [low + share for low, share in zip(below, series.y, strict=True)]
        else:
            _line(
                axis, series, chart.kind, DASHES[kinds.index(series.name) % len(DASHES)] if is_by_run else "-", style
            )
    if chart.kind in ("bars", "shares"):
        _name_bars(axis, chart.series[0].x)
    title = chart.title if chart.run is None or len(names) == 1 else f"{chart.title}, {names[chart.run]}"
    axis.set_title(title, loc="left", fontweight="bold")
    axis.set(xlabel=chart.x, ylabel=chart.y)
    axis.grid(alpha=0.3, axis="both" if chart.kind in ("line", "histogram") else "y")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if chart.kind == "histogram":
        axis.set_ylim(bottom=0)
    columns = 2 if len(chart.series) > 1 else 1
    axis.figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize="small")


def _label(series: Series, names: Sequence[str], is_by_run: bool) -> str:
    name = plain(series.name)
    label = (
        (f"{names[series.run]} · {name}" if name else names[series.run]) if is_by_run else name or names[series.run]
    )
    return f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label  # matplotlib hides those


def _line(axis, series: Series, kind: str, dash, style: dict) -> None:
    if kind == "histogram":
        axis.step(series.x, series.y, where="mid", linestyle=dash, **style)
        return
    axis.plot(series.x, series.y, linestyle=dash, marker="o" if len(series.x) <= 30 else None, markersize=3, **style)
    if series.low is not None:
        axis.fill_between(series.x, series.low, series.high, color=style["color"], alpha=0.15, linewidth=0)


def _bars(axis, series: Series, number: int, count: int, style: dict) -> None:
    width = 0.8 / count
    places = [place + (number - (count - 1) / 2) * width for place in range(len(series.x))]
    axis.bar(places, series.y, width=width, **style)


def _name_bars(axis, names: Sequence) -> None:
    every = max(1, len(names) // 10)
    axis.set_xticks(
        range(0, len(names), every), [f"{name:g}" if isinstance(name, float) else name for name in names[::every]]
    )
