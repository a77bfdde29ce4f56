"""Real facts: the three-hop questions of the atlas, a BM25 search that returns a distractor too, and traces under other names."""

import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import task
from task import ANSWER_TEMPLATE, IGNORED, Search, Task, Trace, word_tokenizer
from transformers import PreTrainedTokenizerFast

from a2tgpo_trl.data.atlas import load_atlas
from a2tgpo_trl.search import BM25Search
from a2tgpo_trl.search.tool import NO_QUERY, NO_RESULT

HELD_OUT_SHARE = 1 / 3
SENTENCES = {
    r"(.+) is a city in (.+)\.": ("city", "country"),
    r"The capital of (.+) is (.+)\.": ("country", "capital"),
    r"The currency of (.+) is the (.+)\.": ("country", "currency"),
    r"(.+) is the code of the airport of (.+)\.": ("airport", "city"),
    r"(.+) is the national anthem of (.+)\.": ("anthem", "country"),
}
"""Forms of the passages → the roles of the names in them."""
KINDS_OF_TRACES = ("airport_currency", "city_capital", "city_currency")
WRONG_QUERIES = ("{}", "Capital of {}", "Currency of {}")


def roles_of(text: str) -> dict[str, str]:
    """The names in a passage, and their roles."""
    matches = ((re.fullmatch(form, text), roles) for form, roles in SENTENCES.items())
    match, roles = next(found for found in matches if found[0])
    return dict(zip(match.groups(), roles, strict=True))


class Facts:
    """
    The atlas with its search.

    Attributes:
        questions (`list[dict]`): As [`~a2tgpo_trl.data.atlas.Atlas`] has them.
        search ([`BM25Search`]): Returns the two best passages.
        kinds (`dict[str, frozenset[str]]`): Names → all roles that they have. Names of the same roles are of one kind.
    """

    def __init__(self):
        atlas = load_atlas()
        self.questions = atlas.questions
        self.search = BM25Search(atlas.passages, top_k=2, show_titles=False)
        self._roles = {passage["title"]: roles_of(passage["text"]) for passage in atlas.passages}
        roles = defaultdict(set)
        for found in self._roles.values():
            for name, role in found.items():
                roles[name].add(role)
        self.kinds = {name: frozenset(has) for name, has in roles.items()}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a name, however many words it has, and one a word or mark of the forms of passages and questions."""
        names = sorted(self.kinds, key=lambda name: (-len(name), name))  # the longest that matches is the name
        end = r"(?!\w| [A-Z])"  # "the Cayman Islands" is no name in "the Cayman Islands Dollar"
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, names))}){end}|\w+|[^\w\s]"
        passages = {tuple(roles_of(text).values()): text for text in (p["text"] for p in self.search.passages)}
        questions = {question["kind"]: question["question"] for question in self.questions}
        texts = [*passages.values(), *questions.values(), *WRONG_QUERIES, NO_QUERY, NO_RESULT]
        return word_tokenizer([*names, *texts], pattern)

    def look_up(self, query: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """What a query finds: titles, the names in the passages, and the text that the tool returns."""
        titles = tuple(passage["title"] for passage in self.search.retrieve([query])[0])
        return titles, tuple(name for title in titles for name in self._roles[title]), self.search.search(query)

    def of_countries(self, kind: str, world: int, held_out: bool) -> list[dict]:
        """Questions of a kind about the countries that a world holds out, or about the others."""
        countries = sorted({question["country"] for question in self.questions})
        chosen = random.Random(world).sample(countries, int(len(countries) * HELD_OUT_SHARE))
        return [q for q in self.questions if q["kind"] == kind and (q["country"] in chosen) == held_out]


@cache
def facts() -> Facts:
    """Read once."""
    return Facts()


def trace(
    chance: random.Random, question: dict, habits: task.Habits, look_up: Callable
) -> Iterator[tuple[str, str | None]]:
    """
    A scripted rollout about the real facts, which always ends in the true answer: a model that learns from it believes what
    can be known.

    Args:
        chance (`random.Random`): Picks what is done.
        question (`dict`): To be answered.
        habits ([`Habits`]): Shares of what is done.
        look_up (`Callable`): [`Facts.look_up`].

    Returns:
        `Iterator`: turns with their results, `None` after the answer.
    """
    supports, asked = list(question["supports"]), []
    names = [supports[0]]

    def wrong() -> str:
        return chance.choice(WRONG_QUERIES).format(chance.choice(names))

    while len(asked) < len(question["supports"]) + 2:
        query = habits.next_query(chance, supports[0] if supports else None, asked, wrong)
        if query is None:
            break
        titles, found, text = look_up(query)
        asked.append(query)
        names += found
        while supports and supports[0] in titles:
            del supports[0]
        yield f"<search>{query}</search>", f"<result>{text}</result>"
    yield ANSWER_TEMPLATE.format(answer=question["answer"][0]), None


class Renaming:
    """
    Gives the names in a trace other names of their kind, each its own: what is learned then is to read, not facts.

    Args:
        facts ([`Facts`]): Whose names these are.
    """

    def __init__(self, facts: Facts):
        ids = {name: facts.tokenizer.convert_tokens_to_ids(name) for name in facts.kinds}
        members = defaultdict(list)
        for name, kind in facts.kinds.items():
            members[kind].append(ids[name])
        self._kind = {ids[name]: members[kind] for name, kind in facts.kinds.items()}

    def draw(self, chance: random.Random, ids: list[int]) -> dict[int, int]:
        """New ids for the names among `ids`."""
        present = defaultdict(list)
        for i in dict.fromkeys(ids):
            if i in self._kind:
                present[id(self._kind[i])].append(i)
        return {
            old: new
            for group in present.values()
            for old, new in zip(group, chance.sample(self._kind[group[0]], len(group)), strict=True)
        }


@dataclass(frozen=True)
class FactsTask(Task):
    """
    Questions of the atlas, answered by searching its passages.

    Attributes:
        kind (`str`): Of the questions.
        reward_noise (`float`): Probability with which the reward of a training rollout is flipped.
        warm_start (`str`): Name of the settings in `warm_start.py` that the policy starts from.
    """

    kind: str = "airport_currency"
    reward_noise: float = 0.0
    warm_start: str = "facts"

    tokens_of_a_turn: ClassVar[int] = 30
    model: ClassVar[dict] = {"tie_word_embeddings": True, "initializer_range": 0.08}
    modules: ClassVar = (task, sys.modules[__name__])

    @property
    def hops(self) -> int:
        return len(next(q for q in facts().questions if q["kind"] == self.kind)["supports"])

    def rows(self, world: int, seed: int, number: int, held_out: bool) -> list[dict]:
        """Questions, each as often as another or once more; a world holds a third of the countries out."""
        questions, chance, drawn = facts().of_countries(self.kind, world, held_out), random.Random(seed), []
        while len(drawn) < number:
            drawn += chance.sample(questions, len(questions))
        return [{"prompt": q["question"], "answer": q["answer"][0]} for q in drawn[:number]]

    def make_search(self, world: int, seed: int) -> Search:
        return facts().search.search

    @staticmethod
    def make_tokenizer() -> PreTrainedTokenizerFast:
        return facts().tokenizer

    @classmethod
    def traces(cls, settings, world: int) -> Iterator[Trace]:
        """Of the questions to train on, each trace under names of its own; results are read, not learned."""
        chance, renaming = random.Random(world), Renaming(facts())
        questions = [facts().of_countries(kind, world, held_out=False) for kind in KINDS_OF_TRACES]
        encode, look_up = cache(lambda text: facts().tokenizer(text)["input_ids"]), cache(facts().look_up)
        while True:
            question = chance.choice(chance.choice(questions))
            ids, labels = list(encode(question["question"])), []
            labels += [IGNORED] * len(ids)
            for turn, result in trace(chance, question, settings.habits[len(question["supports"])], look_up):
                written, read = encode(turn), encode(result) if result else []
                ids += written + read
                labels += written + [IGNORED] * len(read)
            new = renaming.draw(chance, ids)
            yield [new.get(i, i) for i in ids], [new.get(i, i) for i in labels]
