"""Tasks in the generated world: training and held-out questions, the search tool, and scripted traces in fresh worlds."""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import task
import world as worlds
from task import ANSWER_TEMPLATE, IGNORED, Search, Task, Trace, word_tokenizer
from transformers import PreTrainedTokenizerFast
from world import ENTITIES, RELATIONS, World, ask, trace

NOTHING = "none"
HELD_OUT_ENTITIES = 40


@dataclass(frozen=True)
class WorldTask(Task):
    """
    What is asked, and how noisy the answers and the outcome are.

    Attributes:
        hops (`int`): Of each question.
        informative (`bool`): Whether the last hops narrow the answer down.
        result_noise (`float`): Probability with which a query gets `none`.
        reward_noise (`float`): Probability with which the reward of a training rollout is flipped.
        warm_start (`str`): Name of the settings in `warm_start.py` that the policy starts from.
    """

    hops: int
    informative: bool = True
    result_noise: float = 0.0
    reward_noise: float = 0.0
    warm_start: str = "short"

    tokens_of_a_turn: ClassVar[int] = 14  # a query and its result have 10, and a model may write a few more
    modules: ClassVar = (task, worlds, sys.modules[__name__])

    def rows(self, world: int, seed: int, number: int, held_out: bool) -> list[dict]:
        """Questions with their answers; no entity that held-out questions set out from starts one to train on."""
        entities = random.Random(world).sample(range(ENTITIES), ENTITIES)
        starts = entities[:HELD_OUT_ENTITIES] if held_out else entities[HELD_OUT_ENTITIES:]
        chance = random.Random(seed)
        questions = [ask(chance, self.hops, self.informative, starts) for _ in range(number)]
        return [{"prompt": q.prompt, "answer": f"e{q.path(World(world))[-1]}"} for q in questions]

    def make_search(self, world: int, seed: int) -> Search:
        """The tool; its noise is drawn call by call, so calls have to come in a fixed order."""
        chance, facts = random.Random(seed), World(world)

        def search(query: str) -> str:
            """
            Look up a fact.

            Args:
                query: An entity and a relation.

            Returns:
                The fact, or none.
            """
            words = query.split()
            if [word[:1] for word in words] != ["e", "r"] or chance.random() < self.result_noise:
                return NOTHING
            return f"{query} e{facts.fact(int(words[0][1:]), int(words[1][1:]))}"

        return search

    @staticmethod
    def make_tokenizer() -> PreTrainedTokenizerFast:
        """One token a word: entities, relations, tags and marks, 186 in all."""
        names = [f"e{i}" for i in range(ENTITIES)] + [f"r{i}" for i in range(RELATIONS)]
        return word_tokenizer(["Q ?", NOTHING, *names], r"\w+|\?")

    @classmethod
    def traces(cls, settings, world: int) -> Iterator[Trace]:
        """Everything behind the prompt is learned, results too, which teach the clusters."""
        tokenizer, chance = cls.make_tokenizer(), random.Random(world)
        while True:
            prompt, rest = (tokenizer(text)["input_ids"] for text in trace_text(chance, settings))
            yield prompt + rest, [IGNORED] * len(prompt) + rest


def trace_text(chance: random.Random, settings) -> tuple[str, str]:
    """The prompt of a scripted rollout in a fresh world, and what follows it."""
    world = World(chance.getrandbits(48))
    question = ask(chance, chance.choice(list(settings.habits)), chance.random() < 0.5)
    noise = settings.result_noise if chance.random() < settings.noisy else 0.0

    def result(query):
        return None if chance.random() < noise else world.fact(*query)

    asked, answer = trace(chance, world, question, settings.habits[len(question.relations)], result)
    told = [
        f"<search> e{e} r{r} </search> <result> {NOTHING if fact is None else f'e{e} r{r} e{fact}'} </result>"
        for (e, r), fact in asked
    ]
    return question.prompt, " ".join([*told, ANSWER_TEMPLATE.format(answer=f"e{answer}")])
