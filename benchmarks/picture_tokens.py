"""
Claim: in a token tree the tokens of a picture are read once, and the picture is encoded once, however many contexts it stands in.

Counts, without a model, what beliefs of a group of 8 rollouts are scored with: a prompt of 100 tokens with a picture of 256, four
tool turns of 40 tokens, observations of 100, alone and with a picture of 256 each, and a probe of 12. Nothing that is written is
the same in two rollouts.

    python benchmarks/picture_tokens.py

Writes the figures as JSON beside itself.
"""

import json
from itertools import count
from pathlib import Path

from a2tgpo_trl.signals.beliefs import Probe, ProbedRow, queries, share_contexts
from a2tgpo_trl.signals.beliefs.packing import pack
from a2tgpo_trl.signals.beliefs.pictures import PictureSpan, ReadPicture

ROLLOUTS, TURNS = 8, 4
TEXT, TURN, OBSERVATION, PICTURE, PROBE = 100, 40, 100, 256, 12
PLACEHOLDER = 1


def rows(pictures_in_observations: bool) -> list[ProbedRow]:
    """The group, each text of tokens of its own, each picture another one."""
    fresh, numbers = count(PLACEHOLDER + 1), count(1)

    def text(length):
        return [next(fresh) for _ in range(length)]

    def picture(start):
        return PictureSpan(start, start + PICTURE, next(numbers), [ReadPicture(None)])

    prompt, seen = text(TEXT) + [PLACEHOLDER] * PICTURE, picture(TEXT)
    prompt += text(1)
    probe = Probe(text(PROBE), [False] * (PROBE - 2) + [True] * 2)
    group = []
    for _ in range(ROLLOUTS):
        context, ends, spans = list(prompt), [len(prompt)], [seen]
        for _ in range(TURNS):
            context += text(TURN)
            if pictures_in_observations:
                spans.append(picture(len(context)))
                context += [PLACEHOLDER] * PICTURE
            context += text(OBSERVATION)
            ends.append(len(context))
        group.append(ProbedRow(context, ends, [probe]).with_pictures(spans))
    return share_contexts(group)[0]


def counted(group: list[ProbedRow]) -> dict[str, dict[str, int]]:
    """Tokens that a model reads, and pictures that it encodes."""
    found = queries(group)
    (tree,) = pack([q.ids for q in found], [q.context_length for q in found], [q.row for q in found], 10**9)
    once = [p for key, branch in tree.branches.items() for p in found[key].pictures_from(branch.shared)]
    again = [picture for query in found for picture in query.pictures_from(0)]
    return {
        "tree": {"tokens": len(tree.ids), "pictures": len(once)},
        "prefixes": {"tokens": sum(len(query.ids) for query in found), "pictures": len(again)},
    }


def main() -> None:
    figures = {"in the prompt": counted(rows(False)), "in observations too": counted(rows(True))}
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, ways in figures.items():
        print(name, *(f"{way}: {n['tokens']} tokens, {n['pictures']} pictures" for way, n in ways.items()), sep="\n  ")


if __name__ == "__main__":
    main()
