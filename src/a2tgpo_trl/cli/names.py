"""What options name: tools, rewards, and the questions to ask."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import A2TGPOConfig
from ..credit import ESTIMATORS, Estimator
from ..data import load_atlas, load_questions, split_by_entity, to_dataset
from ..rewards import exact_match_reward, f1_reward, format_penalty, format_reward, tool_reward
from ..tools import calculator, finish
from .models import check_model
from .searches import ATLAS, check_names, load_searches

REWARDS = {"exact_match": exact_match_reward, "f1": f1_reward, "format": format_reward}
TURN_REWARDS = {"format_penalty": format_penalty, "tool_reward": tool_reward}
TOOLS = {"calculator": calculator, "finish": finish}
KNOWN = {
    "advantage_estimator": tuple(ESTIMATORS),
    "rewards": tuple(REWARDS),
    "tools": ("search", *TOOLS),
    "turn_reward_funcs": tuple(TURN_REWARDS),
}
"""By option, the names that stand for something of this package; others are looked up in the user's modules."""
ATLAS_SPLITS = ("train", "test")


@dataclass
class TaskArguments:
    """What a model is asked, and what it may use."""

    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Prompt with {question} in it. Default: the data's own prompts, or one that says how to call the tools and how to answer."
        },
    )
    conversational: bool = field(
        default=False, metadata={"help": "Whether prompts are chat messages; text otherwise. Pictures need messages."}
    )
    pictures: bool = field(
        default=False,
        metadata={
            "help": "Whether the model's processor is loaded though no question has pictures, so that tools may return some."
        },
    )
    columns: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Where the data has its question and answer, as JSON: \'{"question": "q", "answer": "a.text"}\'; '
            'and its pictures, \'{"images": "photo"}\', or null where columns image and images hold none.'
        },
    )
    tools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "'search', 'calculator', 'finish', or dotted names of functions: my_module.my_tool. None: the model answers at once."
        },
    )
    search_url: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Address of a retriever for 'search', such as http://127.0.0.1:8000/retrieve. Several searches are named, "
            "news=http://…, and are the tools search_news, …"
        },
    )
    search_index: list[str] = field(
        default_factory=list,
        metadata={"help": "Folder of a built index for 'search', or 'atlas'. Several are named: wiki=wiki.bm25."},
    )
    search_top_k: int = field(default=3, metadata={"help": "Passages that a search returns."})
    search_max_words: int | None = field(default=None, metadata={"help": "Words of a passage that the model reads."})
    search_titles: bool = field(
        default=True, metadata={"help": "Whether passages are numbered and have their titles."}
    )

    search_deduplicate: bool = field(
        default=True, metadata={"help": "Whether a passage that is found again in one search is left out."}
    )

    def __post_init__(self):
        if ("search" in self.tools) != bool(self.search_url or self.search_index):
            raise ValueError("the tool 'search' and search_url or search_index go together: set both or neither.")
        check_names(self.search_url, self.search_index)

    def load_tools(self) -> list[Callable]:
        """Tools by name; raises ValueError or ImportError where there is none of that name."""
        return [tool for name in self.tools for tool in (self._searches() if name == "search" else [_tool(name)])]

    def _searches(self) -> list[Callable]:
        options = dict(
            top_k=self.search_top_k,
            show_titles=self.search_titles,
            max_words=self.search_max_words,
            deduplicate=self.search_deduplicate,
        )
        return load_searches(self.search_url, self.search_index, **options)

    def load_data(
        self, source: str, split: str, default_template: str, subset: str | None = None, streaming: bool = False
    ) -> Any:
        """Questions by file, folder or name; the atlas' train split and the countries that it holds out, `test`."""
        if source == ATLAS:
            return self._load_atlas(split, self.prompt_template or default_template, subset)
        return load_questions(
            source,
            split,
            columns=_mapping(self.columns),
            prompt_template=self.prompt_template,
            conversational=self.conversational,
            subset=subset,
            streaming=streaming,
            default_template=default_template,
        )

    def _load_atlas(self, split: str, template: str, subset: str | None) -> Any:
        if split not in ATLAS_SPLITS:
            raise ValueError(f"the split of the atlas is {split!r}: it has {' and '.join(ATLAS_SPLITS)}.")
        if self.columns or subset:
            raise ValueError("columns and subsets are for other data than the atlas: leave them out.")
        parts = split_by_entity(load_atlas().questions)
        return to_dataset(parts[ATLAS_SPLITS.index(split)], template, self.conversational)


def _tool(name: str) -> Callable:
    return TOOLS[name] if name in TOOLS else named(name, "tools")


def _mapping(columns: dict | str | None) -> dict | None:
    if not isinstance(columns, str):
        return columns
    import json

    try:
        return json.loads(columns)
    except json.JSONDecodeError as error:
        raise ValueError(f"columns is no JSON ({error}): {columns!r}") from error


def tag_of_finish(tools: list[Callable], config: A2TGPOConfig) -> None:
    """
    Where text tags call `finish`, make it the tag of answers, which rewards read, unless tags are given.

    Raises:
        ValueError: If TRL's loop would play the rollouts, which no tool can end.
    """
    if finish in tools and config.tool_loop == "trl":
        raise ValueError(
            "the tool 'finish' ends a rollout, which tool_loop='trl' does not know: leave one of them out."
        )
    if finish in tools and config.tool_tags is None:
        config.tool_tags = {finish.__name__: "answer"}


def load_rewards(names: list[str]) -> list[Callable]:
    """Reward functions by the names of this package, or dotted names."""
    return [REWARDS[name] if name in REWARDS else named(name, "rewards") for name in names]


def load_turn_rewards(names: list[str]) -> list[Callable | str]:
    """
    Turn reward functions by the names of this package or dotted names, and process reward models by theirs.

    Raises:
        ValueError: If there is no such function, or no such model.
    """
    return [_turn_reward(name) for name in names]


def _turn_reward(name: str) -> Callable | str:
    if name in TURN_REWARDS:
        return TURN_REWARDS[name]
    if ":" in name or not ("/" in name or Path(name).is_dir()):
        return named(name, "turn_reward_funcs")
    check_model(name, "main", f"turn_reward_funcs: {name!r}")
    return name


def load_estimator(name: str) -> str | type[Estimator]:
    """
    A name of `ESTIMATORS` as it is, and the class that a dotted name stands for.

    Raises:
        ValueError: If it is neither.
    """
    if name in ESTIMATORS:
        return name
    found = imported(name, "advantage_estimator")
    if not (isinstance(found, type) and issubclass(found, Estimator)):
        raise ValueError(
            f"advantage_estimator: {name!r} is a {type(found).__name__}: name a subclass of a2tgpo_trl.credit.Estimator."
        )
    return found


def named(name: str, option: str) -> Callable:
    """
    The function that a name stands for, as [`imported`].

    Raises:
        ValueError: If its module cannot be imported, or has nothing of that name to call; names the option.
    """
    found = imported(name, option)
    if not callable(found):
        raise ValueError(f"{option}: {name!r} is a {type(found).__name__}: name a function.")
    return found


def imported(name: str, option: str) -> Any:
    """
    What `my_module.thing`, `my_module:thing` or `my_file.py:thing` stands for, the working directory included.

    Args:
        name (`str`): As it was given. A file is in the working directory, or in a folder of it.
        option (`str`): Whose value it is.

    Raises:
        ValueError: If its module cannot be imported, or has nothing of that name; names the option.
    """
    module, attribute = _module_and_attribute(name, option)
    if not module:
        raise ValueError(
            f"{option}: {name!r} is none of {', '.join(KNOWN[option])}, and no dotted name such as my_module.{attribute}."
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise ValueError(f"{option}: {name!r} cannot be imported ({type(error).__name__}: {error}).") from error


def _module_and_attribute(name: str, option: str) -> tuple[str, str]:
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py"):
        module, _, attribute = name.replace(":", ".").rpartition(".")
        return module, attribute
    path = Path(file).resolve()
    if not path.is_file() or not path.is_relative_to(Path.cwd()):
        raise ValueError(
            f"{option}: {name!r} names the file {file}, which is not in the working directory {Path.cwd()} or below: start the "
            "command in its folder, or put that folder on PYTHONPATH and name my_module.my_function."
        )
    return ".".join(path.relative_to(Path.cwd()).with_suffix("").parts), attribute
