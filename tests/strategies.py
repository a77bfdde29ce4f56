"""What hypothesis draws: masks of completions, tables of turns with gaps, groups. Few examples in `make test`, many in `make trust`."""

import math

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from thorough import THOROUGH

# The same examples each time, for a test that fails now and then is no test
settings.register_profile(
    "a2tgpo",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200 if THOROUGH else 8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("a2tgpo")

eighths = st.integers(-64, 64).map(lambda number: number / 8)
"""Numbers whose sums are exact."""
gammas = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@st.composite
def completions(draw):
    """Completions drawn as text, `m` a model token and `t` a tool token, and how wide their masks are."""
    drawn = draw(st.lists(st.text("mt", max_size=10), min_size=1, max_size=5))
    return drawn, max(1, *map(len, drawn)) + draw(st.integers(0, 2))


@st.composite
def tables(draw, rows, width, values=eighths, gaps=True):
    """Values of turns in float64, `(rows, width)`, NaN where there is none."""
    cell = st.one_of(values, st.just(math.nan)) if gaps else values
    row = st.lists(cell, min_size=width, max_size=width)
    return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=torch.float64).view(rows, width)


@st.composite
def groups(draw, gaps=True):
    """A table of whole groups, and how many completions a group has."""
    num_generations, num_groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return draw(tables(num_generations * num_groups, width, gaps=gaps)), num_generations


@st.composite
def ragged(draw):
    """A table whose rows have values first and nothing after them, and how many each has."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    width = max(1, *lengths) + draw(st.integers(0, 1))
    table = draw(tables(len(lengths), width, gaps=False))
    lengths = torch.tensor(lengths)
    return table.where(torch.arange(width) < lengths.unsqueeze(1), math.nan), lengths
