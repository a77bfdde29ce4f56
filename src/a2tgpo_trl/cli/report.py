"""`a2tgpo report`: what runs did, and which turns earned the credit."""

import argparse
from pathlib import Path

from .main import OptionParser, as_bad_usage

DESCRIPTION = (
    "Make a page of what runs wrote: learning curves, credit by turn, stop reasons, tools, and a browser of rollouts. It is "
    "one HTML file that opens from disk."
)
PAGE = Path("report.html")


def run(options: list[str]) -> int:
    """Write what was asked for; returns the exit status."""
    parser = OptionParser(prog="a2tgpo report", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run; several are compared")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page (default: {PAGE}, unless --png or --text is given)"
    )
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write the plots there, a PNG file each")
    parser.add_argument("--text", action="store_true", help="print the essentials here")
    parser.add_argument(
        "--limit",
        type=int,
        default=10_000,
        metavar="N",
        help="about how many rollouts of each run the page has, in whole groups (default: 10000); charts are of all",
    )
    parser.add_argument(
        "--pictures_mb",
        type=float,
        default=32.0,
        metavar="MB",
        help="most megabytes of pictures in the page (default: 32); above, every second group of rollouts goes without; 0: none",
    )
    arguments = parser.parse_args(options)
    with as_bad_usage():
        if arguments.pictures_mb < 0:
            raise ValueError(f"pictures_mb={arguments.pictures_mb} must be at least 0.")
        if arguments.limit < 1:
            raise ValueError(f"limit={arguments.limit} must be at least 1.")
        _report(arguments)
    return 0


def _report(arguments: argparse.Namespace) -> None:
    from ..report import Measures, make_charts, read_runs, write_page

    runs = read_runs(arguments.runs)
    measures = [Measures.of(found) for found in runs]
    if arguments.text:
        _print(runs, measures)
    charts = make_charts(runs, measures) if arguments.png or arguments.output or not arguments.text else []
    if arguments.png:
        from ..report.plots import write_plots

        files = write_plots(charts, [found.name for found in runs], arguments.png)
        print(f"{arguments.png}: {len(files)} plots")
    if arguments.output or not (arguments.text or arguments.png):
        page = arguments.output or PAGE
        count = write_page(runs, measures, page, arguments.limit, charts, arguments.pictures_mb)
        print(
            f"{page}: {count:,} rollouts of {len(runs)} run{'s' * (len(runs) > 1)}, {page.stat().st_size / 1e6:.1f} MB"
        )


def _print(runs, measures) -> None:
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError("--text needs rich: pip install 'a2tgpo-trl[report]'.") from error
    from ..report.text import show

    show(runs, measures, Console(highlight=False))
