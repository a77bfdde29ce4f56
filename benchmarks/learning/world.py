"""A generated world: facts between entities, questions that chain them, and scripted traces through them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from task import Habits

SUPER_CLUSTERS, SUB_CLUSTERS, CLUSTER_SIZE = 4, 5, 8
ENTITIES = SUPER_CLUSTERS * SUB_CLUSTERS * CLUSTER_SIZE
REACH = {"anywhere": range(0, 8), "super": range(8, 11), "sub": range(11, 14)}
"""Where a relation leads: anywhere, within the super-cluster of its subject, or within its sub-cluster."""
RELATIONS = sum(map(len, REACH.values()))
WIDTH = {"anywhere": ENTITIES, "super": SUB_CLUSTERS * CLUSTER_SIZE, "sub": CLUSTER_SIZE}

Query = tuple[int, int]


def reach_of(relation: int) -> str:
    """Where a relation leads."""
    return next(name for name, relations in REACH.items() if relation in relations)


def candidates(entity: int, relation: int) -> range:
    """The entities that a fact about `entity` can name: what is known of the answer before the fact is."""
    width = WIDTH[reach_of(relation)]
    first = entity // width * width
    return range(first, first + width)


class World:
    """
    Facts `entity, relation → entity`, each drawn when it is first asked for, the same for the same seed.

    Args:
        seed (`int`): Of the facts.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def fact(self, entity: int, relation: int) -> int:
        """What the relation leads to."""
        key = (self.seed * ENTITIES + entity) * RELATIONS + relation
        return random.Random(key).choice(candidates(entity, relation))


@dataclass(frozen=True)
class Question:
    """
    A chain of relations from an entity.

    Attributes:
        start (`int`): The entity that it sets out from.
        relations (`tuple[int, ...]`): Of the hops, in their order.
    """

    start: int
    relations: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"Q e{self.start} {' '.join(f'r{relation}' for relation in self.relations)} ?"

    def path(self, world: World) -> list[int]:
        """The entities along the chain, the answer last."""
        path = [self.start]
        for relation in self.relations:
            path.append(world.fact(path[-1], relation))
        return path


def pattern(hops: int, informative: bool) -> list[str]:
    """Where the relations of a chain lead: an informative one ends in hops that narrow the answer down."""
    narrow = max(1, hops // 4) if informative else 0
    wide = narrow if hops > 2 else 0
    return ["anywhere"] * (hops - narrow - wide) + ["super"] * wide + ["sub"] * narrow


def ask(chance: random.Random, hops: int, informative: bool, starts: Sequence[int] = range(ENTITIES)) -> Question:
    """A random question, whose relations differ: what was asked last tells what comes next."""
    places = pattern(hops, informative)
    drawn = {reach: chance.sample(relations, places.count(reach)) for reach, relations in REACH.items()}
    return Question(chance.choice(starts), tuple(drawn[reach].pop() for reach in places))


def trace(
    chance: random.Random, world: World, question: Question, habits: Habits, result: Callable[[Query], int | None]
) -> tuple[list[tuple[Query, int | None]], int]:
    """
    A scripted rollout, which always ends in the true answer: a model that learns from it believes what can be known.

    Args:
        chance (`random.Random`): Picks what is done.
        world ([`World`]): Whose facts the answer follows.
        question ([`Question`]): To be answered.
        habits ([`Habits`]): Shares of what is done.
        result (`Callable`): What a query gets, `None` where the world is noisy and tells nothing.

    Returns:
        `tuple`: the queries with their results, and the answer.
    """
    path, known, asked = question.path(world), 0, []

    def wrong() -> Query:
        return chance.choice(path[: known + 1]), chance.choice(question.relations)

    while len(asked) < len(question.relations) + 3:
        right = (path[known], question.relations[known]) if known < len(question.relations) else None
        query = habits.next_query(chance, right, [query for query, _ in asked], wrong)
        if query is None:
            break
        told = result(query)
        asked.append((query, told))
        known += query == right and told is not None
    return asked, path[-1]
