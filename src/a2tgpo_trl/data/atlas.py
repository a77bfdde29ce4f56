"""The atlas that ships with the package: passages and the questions that they answer."""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Atlas:
    """Real facts about the world as passages of one sentence, and questions that take several of them.

    Attributes:
        passages (`list[dict]`):
            Dicts with `"title"` and `"text"`; titles are unique.
        questions (`list[dict]`):
            Dicts with `"question"`; `"answer"`, a list of aliases with the canonical one first; `"kind"`:
            `"city_capital"`, `"city_currency"`, `"capital_currency"`, `"anthem_currency"` (two hops) or
            `"airport_currency"` (three); `"country"`, which the question leads through without naming it: the key to
            split by; and `"supports"`, the titles of the passages that answer it, in order. Searching a title with
            BM25 finds its passage first, so that they are also the queries of a perfect agent. The order is mixed.
        attribution (`str`):
            The sources and their licences, to be shown where the facts are.
    """

    passages: list[dict]
    questions: list[dict]
    attribution: str


def load_atlas() -> Atlas:
    """Load the atlas that ships with the package; `scripts/build_atlas.py` made it.

    Returns:
        `Atlas`: some 2,100 passages and 2,500 questions.
    """
    text = resources.files("a2tgpo_trl").joinpath("assets/atlas.json").read_text(encoding="utf-8")
    return Atlas(**json.loads(text))
