"""What a task has to offer to be run, and what tasks have in common: rewards, tokenizers, and habits of scripted traces."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from a2tgpo_trl.rewards import exact_match_reward

ANSWER_TEMPLATE = "<answer>{answer}</answer>"
"""The default of `answer_template`."""

TOKENS_OF_AN_ANSWER = 3
"""Of the answer in its template, which beliefs are measured with."""
TAGS = [f"<{slash}{tag}>" for tag in ("search", "result", "answer") for slash in ("", "/")]
PAD, END = "<pad>", "<end>"
UNKNOWN = "abcdef"  # the word that transformers puts before each token to see what a stop string can match
IGNORED = -100  # the label of what is not learned

Search = Callable[[str], str]
Trace = tuple[list[int], list[int]]
"""Ids of a scripted rollout, and their labels."""


@dataclass(frozen=True)
class Habits:
    """
    How a scripted trace goes on before each turn; shares, of which what is left to 1 asks the right query.

    Attributes:
        stop (`float`): Answers, though the chain is not at its end.
        wrong (`float`): Asks a query that need not lead on: another relation, or of another entity.
        repeat (`float`): Asks an earlier query again.
        needless (`float`): Goes on to ask although the chain is at its end.
    """

    stop: float = 0.35
    wrong: float = 0.15
    repeat: float = 0.05
    needless: float = 0.1

    def next_query(self, chance: random.Random, right, asked: list, wrong: Callable):
        """
        The query of the next turn.

        Args:
            chance (`random.Random`): Picks what is done.
            right (`Any`): What leads on, `None` at the end of the chain.
            asked (`list`): Earlier queries.
            wrong (`Callable`): Makes a query that need not lead on.

        Returns:
            `Any`: a query, or `None` to answer now.
        """
        draw = chance.random()
        if right is None:
            return chance.choice(asked) if draw < self.needless else None
        if draw < self.stop:
            return None
        if draw < self.stop + self.wrong:
            return wrong()
        if draw < self.stop + self.wrong + self.repeat and asked:
            return chance.choice(asked)
        return right


class Task(ABC):
    """
    What a run asks of a task. A task comes in several variants, called worlds: each has its facts or its split of them, and
    its own warm start, which tasks of one class and one name of settings share.

    Attributes:
        hops (`int`): Of each question.
        reward_noise (`float`): Probability with which the reward of a training rollout is flipped.
        warm_start (`str`): Name of the settings in `warm_start.py` that the policy starts from.
    """

    tokens_of_a_turn: ClassVar[int]
    """At most, of a query and its result."""
    model: ClassVar[dict] = {}
    """Options of `LlamaConfig` besides those in `warm_start.py`."""
    modules: ClassVar[tuple[ModuleType | str, ...]]
    """Whose code a warm start depends on."""

    hops: int
    reward_noise: float
    warm_start: str

    @abstractmethod
    def rows(self, world: int, seed: int, number: int, held_out: bool) -> list[dict]:
        """Questions as dicts of `prompt` and `answer`; those to train on and held-out ones share none."""

    @abstractmethod
    def make_search(self, world: int, seed: int) -> Search:
        """The tool."""

    @staticmethod
    @abstractmethod
    def make_tokenizer() -> PreTrainedTokenizerFast:
        """One token a word; `<answer>`, an answer and `</answer>` have three."""

    @classmethod
    @abstractmethod
    def traces(cls, settings, world: int) -> Iterator[Trace]:
        """Scripted rollouts without end, which a warm start with these settings learns from."""

    def make_outcome(self, seed: int):
        """Exact match, flipped with a probability."""
        chance = random.Random(seed)

        def outcome(completions, answer, **kwargs) -> list[float]:
            rewards = exact_match_reward(completions, answer=answer, **kwargs)
            return [1 - reward if chance.random() < self.reward_noise else reward for reward in rewards]

        return outcome


def word_tokenizer(texts: Iterable[str], pattern: str) -> PreTrainedTokenizerFast:
    """One token a word: marks, tags, and the words that `pattern` finds in the texts."""
    split = pre_tokenizers.Split(Regex(rf"</?\w+>|{pattern}"), "removed", invert=True)
    words = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([PAD, END, UNKNOWN, *TAGS, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
