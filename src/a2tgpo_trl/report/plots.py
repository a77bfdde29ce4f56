"""Charts as PNG files, by matplotlib."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..integrations.plain import plain
from .charts import Chart, Look, Series, looks
from .formats import compact
from .palette import DASHES, LIGHT

SIZE = (6.4, 4.2)
"""Inches of a chart."""


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
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in charts:
        files.append(folder / f"{chart.key}.png")
        with figure(files[-1], figsize=SIZE) as axis:
            draw(axis, chart, names)
    return files


def write_sheet(charts: Sequence[Chart], names: Sequence[str], title: str, file: Path) -> None:
    """
    Draw charts into one file, two in a row.

    Args:
        charts (`Sequence[Chart]`): What to draw.
        names (`Sequence[str]`): Of the runs.
        title (`str`): Above them.
        file (`Path`): PNG file.

    Raises:
        ImportError: If matplotlib is missing.
    """
    rows = (len(charts) + 1) // 2
    with figure(file, nrows=rows, ncols=2, squeeze=False, figsize=(10, 3.3 * rows)) as axes:
        axes[0, 0].figure.suptitle(title)
        for axis in axes.flat[len(charts) :]:
            axis.remove()
        for axis, chart in zip(axes.flat, charts, strict=False):
            draw(axis, chart, names)


@contextmanager
def figure(file: Path, figsize: tuple[float, float], dpi: int = 130, **grid) -> Iterator:
    """
    A figure's axes, to draw on; then it is written to a file. It is none of pyplot's, whose backend stays the one that a
    notebook or a script has chosen.

    Args:
        file (`Path`): PNG file.
        figsize (`tuple[float, float]`): Inches.
        dpi (`int`): Dots per inch.
        grid: Arguments of `Figure.subplots`.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'a2tgpo-trl[report]'.") from error
    with matplotlib.rc_context({"text.parse_math": False, "axes.axisbelow": True}):  # names are no formulas
        drawn = Figure(figsize=figsize, layout="constrained")
        yield drawn.subplots(**grid)
        drawn.savefig(file, dpi=dpi)


def tidy(axis, grid: str = "both") -> None:
    """What all axes have in common: a light grid and no frame."""
    axis.grid(alpha=0.3, axis=grid)
    axis.spines[["top", "right"]].set_visible(False)


def draw(axis, chart: Chart, names: Sequence[str]) -> None:
    """
    Draw a chart.

    Args:
        axis: Of matplotlib.
        chart (`Chart`): What to draw.
        names (`Sequence[str]`): Of the runs.
    """
    below = [0.0] * len(chart.series[0].x)
    has_bars = chart.kind in ("bars", "shares")
    for number, (series, look) in enumerate(zip(chart.series, looks(chart, names), strict=True)):
        style = {"color": LIGHT[look.color % len(LIGHT)], "label": _label(look), "alpha": 0.45 if look.is_light else 1}
        if chart.kind == "bars":
            _bars(axis, series, number, len(chart.series), style)
        elif chart.kind == "shares":
            axis.bar(range(len(series.x)), series.y, width=0.94, bottom=below, **style)
            below = [low + share for low, share in zip(below, series.y, strict=True)]
        else:
            _line(axis, series, chart.kind, style | {"linestyle": (0, DASHES[look.dash % len(DASHES)] or None)})
    if has_bars:
        _name_bars(axis, chart.series[0].x)
    title = chart.title if chart.run is None or len(names) == 1 else f"{chart.title}, {plain(names[chart.run])}"
    axis.set_title(plain(title), loc="left", fontweight="bold")
    axis.set(xlabel=chart.x, ylabel=plain(chart.y))
    tidy(axis, "y" if has_bars else "both")
    if chart.kind == "line":
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no step between steps
    if chart.is_from_zero:
        axis.set_ylim(bottom=0, top=max(axis.get_ylim()[1], 1e-3))
    columns = min(len(chart.series), 3)
    axis.legend(
        loc="upper left", bbox_to_anchor=(0, -0.2), ncols=columns, handlelength=3, frameon=False, fontsize="small"
    )


def _label(look: Look) -> str:
    label = plain(look.label)
    return f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label  # matplotlib hides those


def _line(axis, series: Series, kind: str, style: dict) -> None:
    if kind == "histogram":
        axis.step(series.x, series.y, where="mid", **style)
        return
    axis.plot(series.x, series.y, marker="o" if len(series.x) <= 30 else None, markersize=3, **style)
    if series.low is not None:
        axis.fill_between(
            series.x, series.low, series.high, color=style["color"], alpha=0.15 * style["alpha"], linewidth=0
        )


def _bars(axis, series: Series, number: int, count: int, style: dict) -> None:
    width = 0.8 / count
    places = [place + (number - (count - 1) / 2) * width for place in range(len(series.x))]
    axis.bar(places, series.y, width=width, **style)


def _name_bars(axis, names: Sequence) -> None:
    every = max(1, len(names) // 10)
    shown = names[::every]
    axis.set_xticks(range(0, len(names), every), [name if isinstance(name, str) else compact(name) for name in shown])
