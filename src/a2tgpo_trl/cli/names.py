"""What options name: tools, rewards, and the questions to ask."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import load_atlas, load_questions, split_by_entity, to_dataset
from ..rewards import exact_match_reward, f1_reward, format_reward
from ..search import BM25Search, HTTPSearch
from ..tools import calculator, finish

REWARDS = {"exact_match": exact_match_reward, "f1": f1_reward, "format": format_reward}
TOOLS = {"calculator": calculator, "finish": finish}
ATLAS = "atlas"
"""Name of the questions and passages that ship with the package."""


@dataclass
class TaskArguments:
    """What a model is asked, and what it may use."""

    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Prompt with {question} in it. Default: the data's own prompts, or 'Question: {question}'."},
    )
    conversational: bool = field(
        default=False, metadata={"help": "Whether prompts are chat messages; text otherwise."}
    )
    columns: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Where the data has its question and answer, as JSON: \'{"question": "q", "answer": "a.text"}\'.'
        },
    )
    tools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "'search', 'calculator', 'finish', or dotted names of functions: my_module.my_tool. None: the model answers at once."
        },
    )
    search_url: str | None = field(
        default=None, metadata={"help": "Address of a retriever for 'search', such as http://127.0.0.1:8000/retrieve."}
    )
    search_index: str | None = field(
        default=None, metadata={"help": "Folder of a built BM25 index for 'search', or 'atlas'."}
    )
    search_top_k: int = field(default=3, metadata={"help": "Passages that a search returns."})
    search_max_words: int | None = field(default=None, metadata={"help": "Words of a passage that the model reads."})
    search_titles: bool = field(
        default=True, metadata={"help": "Whether passages are numbered and have their titles."}
    )

    def __post_init__(self):
        if self.search_url and self.search_index:
            raise ValueError("search_url and search_index are both set: the tool 'search' has one of them.")
        if ("search" in self.tools) != bool(self.search_url or self.search_index):
            raise ValueError("the tool 'search' and search_url or search_index go together: set both or neither.")

    def load_tools(self) -> list[Callable]:
        return [self._search() if name == "search" else TOOLS.get(name) or named(name, "tools") for name in self.tools]

    def _search(self) -> Callable:
        options = dict(top_k=self.search_top_k, show_titles=self.search_titles, max_words=self.search_max_words)
        if self.search_url:
            return HTTPSearch(self.search_url, **options).search
        if self.search_index == ATLAS:
            return BM25Search(load_atlas().passages, **options).search
        return BM25Search.load(self.search_index, **options).search

    def load_data(self, source: str, split: str, streaming: bool = False) -> Any:
        """Questions by file, folder or name; the atlas' train split and the countries that it holds out."""
        if source == ATLAS:
            train, held_out = split_by_entity(load_atlas().questions)
            template = self.prompt_template or "Question: {question}\n"
            return to_dataset(train if split == "train" else held_out, template, self.conversational)
        return load_questions(
            source,
            split,
            columns=_mapping(self.columns),
            prompt_template=self.prompt_template,
            conversational=self.conversational,
            streaming=streaming,
        )


def _mapping(columns: dict | str | None) -> dict | None:
    if not isinstance(columns, str):
        return columns
    import json

    try:
        return json.loads(columns)
    except json.JSONDecodeError as error:
        raise ValueError(f"columns is no JSON ({error}): {columns!r}") from error


def load_rewards(names: list[str]) -> list[Callable]:
    """Reward functions by the names of this package, or dotted names."""
    return [REWARDS[name] if name in REWARDS else named(name, "rewards") for name in names]


def named(name: str, option: str) -> Any:
    """
    What a dotted name stands for, the working directory included.

    Raises:
        ValueError: If there is no such module, or nothing of that name in it; names the option.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        known = ", ".join(REWARDS) if option == "rewards" else ", ".join(["search", *TOOLS])
        raise ValueError(f"{option}: {name!r} is none of {known}, and no dotted name such as my_module.{name}.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: {name!r} cannot be imported ({error}).") from error
