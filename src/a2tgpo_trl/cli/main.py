"""Finds the command, and makes one line of what is wrong with its options."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager

from .. import __version__
from ..integrations.plain import plain

COMMANDS = {
    "train": "train a tool-using model with credit for each turn",
    "eval": "exact match and F1 of a model with its tools, on held-out questions",
    "report": "a page of what runs did, and which turns earned the credit",
    "retriever": "serve a corpus as a search tool over HTTP",
    "methods": "the credit assignments: what each reads, its options, its paper",
    "recipe": "print a recipe or a launch file, to read it or keep it",
    "doctor": "what is installed and works here, to paste into a bug report",
    "demo": "a real 135 M model learns to search twice, on a CPU",
}
USAGE = "usage: a2tgpo {" + ",".join(COMMANDS) + "} [options]   (a2tgpo COMMAND --help lists the options)"
TRACEBACK = "An error is one line; with A2TGPO_TRACEBACK=1 in the environment it shows where it rose."
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
READER_GONE = 141
"""Exit status if whoever reads the output, such as `head`, has enough."""


class BadUsage(Exception):
    """Something that the user can put right, in one line."""


class OptionParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> None:
        raise BadUsage(f"{message} ({self.prog} --help lists the options)")


@contextmanager
def as_bad_usage(*kinds: type[Exception]):
    """
    Take the errors of bad options and missing files for what they are; `A2TGPO_TRACEBACK=1` shows where they rose.

    Args:
        kinds (`type[Exception]`): Which errors; by default those that options and files cause.
    """
    kinds = kinds or (ValueError, TypeError, OSError, ImportError)
    try:
        yield
    except BrokenPipeError:
        raise
    except kinds as error:
        if os.environ.get("A2TGPO_TRACEBACK"):
            raise
        raise BadUsage(" ".join(str(error).split()) or type(error).__name__) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments (`Sequence[str]`, *optional*): The command and its options; by default those of the process.

    Returns:
        `int`: exit status, 0 if all went well, 2 for bad usage, 130 after Ctrl-C, 141 if the output's reader is gone.
    """
    command, *options = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("-h", "--help"):
        print(USAGE, *(f"  {name:10} {what}" for name, what in COMMANDS.items()), TRACEBACK, sep="\n")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"a2tgpo: {command!r} is no command\n{USAGE}", file=sys.stderr)
        return 2
    try:
        status = importlib.import_module(f".{command}", __package__).run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print
        return READER_GONE
    except BadUsage as error:
        print(f"a2tgpo {command}: error: {plain(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"a2tgpo {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
