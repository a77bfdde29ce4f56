"""Tasks in the generated world: questions to train on and held-out ones, the search tool, and the outcome reward."""

import random
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from world import ENTITIES, RELATIONS, World, ask

from a2tgpo_trl.rewards import exact_match_reward

ANSWER_TEMPLATE = "<answer>{answer}</answer>"
"""The default of `answer_template`, which methods without beliefs do not take as an option."""

TOKENS_OF_AN_ANSWER = 3
"""Of the answer in its template, which beliefs are measured with."""
TAGS = [f"<{slash}{tag}>" for tag in ("search", "result", "answer") for slash in ("", "/")]
PAD, END = "<pad>", "<end>"
UNKNOWN = "abcdef"  # the word that transformers puts before each token to see what a stop string can match
NOTHING = "none"
HELD_OUT_ENTITIES = 40


@dataclass(frozen=True)
class Task:
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

    def rows(self, world: World, seed: int, number: int, held_out: bool) -> list[dict]:
        """Questions with their answers; no entity that held-out questions set out from starts one to train on."""
        entities = random.Random(world.seed).sample(range(ENTITIES), ENTITIES)
        starts = entities[:HELD_OUT_ENTITIES] if held_out else entities[HELD_OUT_ENTITIES:]
        chance = random.Random(seed)
        questions = [ask(chance, self.hops, self.informative, starts) for _ in range(number)]
        return [{"prompt": q.prompt, "answer": f"e{q.path(world)[-1]}"} for q in questions]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: entities, relations, tags and marks, 186 in all."""
    names = [f"e{i}" for i in range(ENTITIES)] + [f"r{i}" for i in range(RELATIONS)]
    words = [PAD, END, UNKNOWN, "Q", "?", NOTHING, *TAGS, *names]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tags = pre_tokenizers.Split(Regex(r"</?\w+>"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tags])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def make_search(world: World, noise: float, seed: int):
    """The tool; its noise is drawn call by call, so calls have to come in a fixed order."""
    chance = random.Random(seed)

    def search(query: str) -> str:
        """
        Look up a fact.

        Args:
            query: An entity and a relation.

        Returns:
            The fact, or none.
        """
        words = query.split()
        if [word[:1] for word in words] != ["e", "r"] or chance.random() < noise:
            return NOTHING
        return f"{query} e{world.fact(int(words[0][1:]), int(words[1][1:]))}"

    return search


def make_outcome(noise: float, seed: int):
    """Exact match, flipped with a probability."""
    chance = random.Random(seed)

    def outcome(completions, answer, **kwargs) -> list[float]:
        rewards = exact_match_reward(completions, answer=answer, **kwargs)
        return [1 - reward if chance.random() < noise else reward for reward in rewards]

    return outcome
