"""Options from flags and YAML, with errors of one line."""

from typing import Any

from trl import TrlParser

from .main import BadUsage, as_bad_usage


class Parser(TrlParser):
    """TRL's parser: `--config file.yaml` gives defaults, and the command line wins."""

    def error(self, message: str) -> None:
        raise BadUsage(f"{message} ({self.prog} --help lists the options)")


def parse(command: str, description: str, classes: tuple[type, ...], options: list[str]) -> tuple[Any, ...]:
    """
    The dataclasses of a command, filled.

    Raises:
        BadUsage: If an option is unknown, malformed or out of its range.
    """
    parser = Parser(classes, prog=f"a2tgpo {command}", description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML with options by name; those on the command line win")
    with as_bad_usage():
        return parser.parse_args_and_config(options)[: len(classes)]
