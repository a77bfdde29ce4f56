"""What runs wrote, as a page, as plots and as text: `a2tgpo report`."""

from .charts import Chart, Series, make_charts
from .credit import draw_credit, most_telling
from .measures import Measures
from .page import write_page
from .runs import Run, read_runs

__all__ = [
    "Chart",
    "Measures",
    "Run",
    "Series",
    "draw_credit",
    "make_charts",
    "most_telling",
    "read_runs",
    "write_page",
]
