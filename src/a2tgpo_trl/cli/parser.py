"""Options from flags and YAML, with errors of one line."""

import argparse
import difflib
import os
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from .main import BadUsage, as_bad_usage
from .names import load_estimator


class Parser(TrlParser):
    """TRL's parser, for several YAML files."""

    def error(self, message: str) -> None:
        raise BadUsage(f"{message} ({self.prog} --help lists the options)")

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if isinstance(name := getattr(namespace, "advantage_estimator", None), str):
            namespace.advantage_estimator = load_estimator(name)
        return namespace, unknown

    def take_defaults(self, values: dict[str, Any]) -> None:
        """Take other defaults, by the names of options; one value of a list stands for a list, and text is converted."""
        for action in self._actions:
            if action.dest in values:
                try:
                    action.default = self._converted(action, values[action.dest])
                except argparse.ArgumentError as error:
                    self.error(str(error))

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        if action.nargs != "+":
            return value
        if value is None:
            return [] if isinstance(action.default, list) else None
        values = value if isinstance(value, list) else [value]
        return [self._get_value(action, item) if isinstance(item, str) else item for item in values]


def parse(
    command: str, description: str, classes: tuple[type, ...], options: list[str], ignored: Collection[str] = ()
) -> tuple[Any, ...]:
    """
    The dataclasses of a command, filled: flags, over the files of `--config`, the later over the earlier, over defaults.

    Args:
        command (`str`): Its name.
        description (`str`): For its help.
        classes (`tuple[type, ...]`): Dataclasses whose fields are the options.
        options (`list[str]`): Flags and their values.
        ignored (`Collection[str]`): Options of other commands, which files may hold.

    Raises:
        BadUsage: If an option is unknown, malformed or out of its range, or a file is no YAML of options.
    """
    parser = Parser(classes, prog=f"a2tgpo {command}", description=description)
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="YAML with options by name; may be given several times: the later one wins, and the command line over all. "
        f"Or a recipe: {', '.join(recipes())}",
    )
    values = defaults_of_this_machine()
    known = {field for cls in classes for field in cls.__dataclass_fields__} | set(ignored)
    with as_bad_usage():
        given, unknown = parser.parse_known_args(options)
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}{_closest(unknown, vars(given))}")
    for name in given.config:
        chosen = read_config(name)
        if unknown := sorted(map(str, set(chosen) - known)):
            parser.error(f"--config {name} has unknown options: {', '.join(unknown)}{_closest(unknown, known)}")
        values |= chosen
    parser.take_defaults(values)
    with as_bad_usage():
        return parser.parse_args_into_dataclasses(options, look_for_args_file=False)[: len(classes)]


def _closest(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Options whose names are close to these, as a question."""
    names = (argument.removeprefix("--").partition("=")[0].replace("-", "_") for argument in unknown)
    close = [match for name in names for match in difflib.get_close_matches(name, known, n=1, cutoff=0.7)]
    return f"; did you mean {', '.join(close)}?" if close else ""


def defaults_of_this_machine() -> dict[str, Any]:
    """Without an accelerator: the CPU, in the precision of the weights. On a card older than Ampere: float16."""
    import torch
    from transformers.utils import is_torch_xla_available

    if torch.cuda.is_available() and torch.version.cuda and torch.cuda.get_device_capability() < (8, 0):
        return {"fp16": True, "bf16": False}  # which emulates bfloat16, slowly
    if torch.accelerator.is_available() or is_torch_xla_available():
        return {}
    return {"use_cpu": True, "bf16": False}


def read_config(name: str) -> dict[str, Any]:
    """
    Options of a file or a recipe; its `env` is put into the environment, as by TRL.

    Raises:
        BadUsage: If it is not there, or holds no YAML of options by name.
    """
    try:
        with open(find_recipe(name), encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except OSError as error:
        raise BadUsage(f"--config {name}: no such file, and the recipes are {', '.join(recipes())}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadUsage(f"--config {name} is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("env", {}), dict):
        raise BadUsage(f"--config {name} must hold options by name, such as 'max_steps: 100'; env holds variables so.")
    os.environ.update({key: str(value) for key, value in values.pop("env", {}).items()})
    return values


def recipes() -> list[str]:
    """Names of the recipes in the package; launch files are none."""
    folder = resources.files("a2tgpo_trl") / "recipes"
    inner = [f"{part}/{file.name}" for part in ("baselines", "methods") for file in (folder / part).iterdir()]
    names = [file.name for file in folder.iterdir() if file.name.endswith(".yaml")] + inner
    return sorted(name.removesuffix(".yaml") for name in names)


def find_recipe(name: str) -> str:
    """A file, or the recipe of that name in the package."""
    if Path(name).exists() or name not in recipes():
        return name
    return str(resources.files("a2tgpo_trl") / "recipes" / f"{name}.yaml")
