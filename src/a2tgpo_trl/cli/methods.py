"""`a2tgpo methods`: the credit assignments there are, from what their classes state."""

import inspect
from dataclasses import fields
from textwrap import fill, wrap

from .. import A2TGPOConfig
from ..credit import ESTIMATORS, Estimator, estimator_of, options_read
from .main import OptionParser, as_bad_usage
from .names import load_estimator
from .parser import defaults_of_this_machine

DESCRIPTION = "The methods that advantage_estimator takes: what each reads, its options, its paper. With a name, one of them in full."
WIDTH = 100
SHARED = ("importance_sampling_level", "epsilon", "epsilon_high", "loss_type", "skip_empty_updates")
"""Options of all methods whose default is the method's."""


def run(options: list[str]) -> int:
    """Print the table of all methods, or one of them; returns the exit status."""
    parser = OptionParser(prog="a2tgpo methods", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", help="such as gtpo, or a class of your own: my_module.MyEstimator")
    name = parser.parse_args(options).name
    with as_bad_usage():
        print(table() if name is None else described(name, load_estimator(name)))
    return 0


def table() -> str:
    """A row for each method, at most `WIDTH` columns wide."""
    rows = [("method", "reads", "paper", "options")]
    for name, cls in ESTIMATORS.items():
        rows.append((name, reads(at_defaults(name)), paper_of(cls), ", ".join(cls.options) or "none of its own"))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, options in rows:
        first, *others = wrap(options, WIDTH - sum(widths) - 2 * len(widths))
        columns = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=True))
        lines += [columns + first, *(" " * len(columns) + line for line in others)]
    return "\n".join(
        [
            *lines,
            "",
            "In brackets: read if given, or if an option needs it. `a2tgpo methods NAME` describes one in full.",
        ]
    )


def described(name: str, choice: str | type[Estimator]) -> str:
    """
    One method: its docstring, what it reads, and its options with their defaults.

    Args:
        name (`str`): As it was asked for.
        choice (`str` or a class of [`Estimator`]): What `advantage_estimator` takes for it.
    """
    config = at_defaults(choice)
    estimator = config.estimator
    facts = {
        "reads": reads(config),
        "records": ", ".join(estimator.columns) or "no columns of its own",
        "trains with": ", ".join(f"{option} {getattr(config, option)}" for option in SHARED),
    }
    helps = {option.name: option.metadata.get("help", "") for option in fields(config)}
    parts = [f"{name} ({paper_of(estimator)})", "", *_wrapped(inspect.cleandoc(type(estimator).__doc__ or "")), ""]
    parts += [fill(f"{fact:11}  {said}", WIDTH, subsequent_indent=" " * 13) for fact, said in facts.items()]
    for option in dict.fromkeys(options_read(estimator)):
        parts += ["", f"{option}, default {getattr(config, option)!r}"]
        parts.append(fill(helps[option], WIDTH, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(parts)


def at_defaults(choice: str | type[Estimator]) -> A2TGPOConfig:
    """The configuration of a method in which nobody set anything that it can do without."""
    needed = {"tree_chains": 1} if "tree" in estimator_of(choice).signals else {}
    return A2TGPOConfig("unused", advantage_estimator=choice, report_to="none", **needed, **defaults_of_this_machine())


def reads(config: A2TGPOConfig) -> str:
    """The signals that a method needs, and in brackets those that it reads where they are measured."""
    needed, estimator = config.signals, config.estimator
    others = [signal for signal in (*estimator.signals, *estimator.optional_signals) if signal not in needed]
    return " ".join([", ".join(needed)] * bool(needed) + [f"({', '.join(others)})"] * bool(others)) or "nothing"


def paper_of(estimator: Estimator | type[Estimator]) -> str:
    """Where a method is from."""
    return estimator.paper or "in no paper"


def _wrapped(text: str) -> list[str]:
    """A docstring's lines, those that are too long broken at their own indentation."""
    lines = []
    for line in text.splitlines():
        indentation = " " * (len(line) - len(line.lstrip()) + 4 * line.startswith(" "))
        lines += wrap(line, WIDTH, subsequent_indent=indentation) or [""]
    return lines
