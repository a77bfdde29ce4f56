"""What a step is doing, and how long it will take: a bar in a terminal or a notebook, a line in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import is_in_notebook, logging

logger = logging.get_logger(__name__)
SHOWN_AFTER = 2.0
"""Seconds that work takes before it gets a bar."""


@contextmanager
def progress(description: str, total: int, unit: str, hidden: bool) -> Iterator[tqdm]:
    """
    Show how far some work is, on the main process, for as long as it takes.

    Where nobody looks on, in a log file, there is no bar; a line at level INFO says how long it took.

    Args:
        description (`str`): What is done.
        total (`int`): How much of it there is.
        unit (`str`): What is counted.
        hidden (`bool`): Whether to show no bar, as with `disable_tqdm`.

    Yields:
        `tqdm`: to be told of progress by `update`.
    """
    is_watched = sys.stderr.isatty() or is_in_notebook()
    hidden = hidden or not is_watched or not PartialState().is_main_process
    start = perf_counter()
    with tqdm(desc=description, total=total, unit=unit, disable=hidden, leave=False, delay=SHOWN_AFTER) as bar:
        yield bar
    logger.info(f"{description}: {total} {unit}s in {perf_counter() - start:.1f} s.")
