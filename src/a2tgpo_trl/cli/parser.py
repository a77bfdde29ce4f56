"""Options from flags and YAML, with errors of one line."""

from importlib import resources
from pathlib import Path
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
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML with options by name; those on the command line win. Or a recipe: {', '.join(recipes())}",
    )
    options = list(options)
    if "--config" in options[:-1]:
        place = options.index("--config") + 1
        options[place] = find_recipe(options[place])
    with as_bad_usage():
        return parser.parse_args_and_config(options)[: len(classes)]


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("a2tgpo_trl") / "recipes"
    inner = [
        f"{part.name}/{file.name}" for part in folder.iterdir() if part.name == "baselines" for file in part.iterdir()
    ]
    names = [file.name for file in folder.iterdir() if file.name.endswith(".yaml")] + inner
    return sorted(name.removesuffix(".yaml") for name in names)


def find_recipe(name: str) -> str:
    """A file, or the recipe of that name in the package."""
    if Path(name).exists() or name not in recipes():
        return name
    return str(resources.files("a2tgpo_trl") / "recipes" / f"{name}.yaml")
