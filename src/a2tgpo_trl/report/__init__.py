"""What runs wrote, as a page, as plots and as text: `a2tgpo report`."""

from .charts import Chart, Series, make_charts
from .credit import most_telling, shown_rollout
from .markdown import as_markdown
from .measures import Measures
from .page import write_page
from .picture import draw_credit
from .plots import write_sheet
from .runs import Run, read_runs

__all__ = [
    "Chart",
    "Measures",
    "Run",
    "Series",
    "as_markdown",
    "draw_credit",
    "make_charts",
    "most_telling",
    "read_runs",
    "shown_rollout",
    "write_page",
    "write_sheet",
]
