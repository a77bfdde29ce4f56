"""Beliefs: which tokens are scored, in which contexts, and what to run a model over for it."""

import math

import pytest
import torch

import tiny
from a2tgpo_trl.signals.beliefs import (
    Probe,
    ProbedRow,
    Query,
    belief_table,
    join_aliases,
    make_probe,
    mean_logps,
    probed_rows,
    queries,
    scored_answers,
    share_contexts,
    shared_beliefs,
)

TEMPLATE = "<answer>{answer}</answer>"
NAN = math.nan


def scored_text(template, answer):
    tokenizer = tiny.tokenizer()
    probe = make_probe(tokenizer, template, answer)
    assert tokenizer.decode(probe.ids) == template.format(answer=answer)
    return [tokenizer.decode([token]) for token, scored in zip(probe.ids, probe.scored, strict=True) if scored]


@pytest.mark.parametrize(
    "answer",
    ["Paris", " Paris", "  Paris", "12345", "1 234", "Pérou à ü", "東京", "東京 1", "x", ">", "<answer>", "🙂"],
)
@pytest.mark.parametrize("template", [TEMPLATE, "{answer}", "The answer is {answer}", "{answer}.", "é{answer}é"])
def test_scored_tokens_are_exactly_those_that_hold_answer_bytes(template, answer):
    """Judge: byte by byte. A byte-level token stands for known bytes, so its place in the text is known exactly."""
    tokenizer = tiny.tokenizer()
    probe = make_probe(tokenizer, template, answer)
    first = len(template[: template.index("{answer}")].encode())
    last = first + len(answer.encode())
    position, expected = 0, []
    for token in tokenizer.convert_ids_to_tokens(probe.ids):
        stop = position + len(token)  # one character of a byte-level token is one byte of text
        expected.append(position < last and stop > first)
        position = stop
    assert position == len(template.format(answer=answer).encode())
    assert probe.scored == expected


def test_a_token_that_merges_the_border_is_scored():
    # " capital of" holds the merge " c…": a template that ends in a space shares its token with the answer
    assert "".join(scored_text("The {answer}", "capital")) == " capital"


def test_special_tokens_are_not_added():
    tokenizer = tiny.tokenizer()
    assert not set(make_probe(tokenizer, TEMPLATE, "Paris").ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "cell, expected",
    [
        ("Paris", ["Paris"]),
        (["Paris", "Lutetia"], ["Paris", "Lutetia"]),
        (["", " ", "Paris"], ["Paris"]),
        ([" Paris", "Paris", "PARIS ", "Ｐaris", "Paris, France"], [" Paris", "Paris, France"]),
        (["New  York", "new york"], ["New  York"]),
        ("", []),
        ("  ", []),
        ([], []),
        (None, []),
        ([""], []),
    ],
)
def test_aliases_that_are_the_same_count_once(cell, expected):
    assert scored_answers(cell, "'answer' of row 0") == expected


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (7, "7 (int)"),
        ([["Paris"]], "[['Paris']] (list)"),
        (["Paris", None], "['Paris', None] (list)"),
        (["Paris", 7], "['Paris', 7] (list)"),
        ({"text": "Paris"}, "{'text': 'Paris'} (dict)"),
    ],
)
def test_an_answer_that_is_no_text_is_refused(cell, shown):
    with pytest.raises(ValueError) as error:
        scored_answers(cell, "'answer' of row 3")
    assert f"'answer' of row 3 must be text or a list of aliases, got {shown}" in str(error.value)


def test_queries():
    probe = Probe([7, 8, 9, 3], [False, True, True, False])
    rows = [
        ProbedRow([1, 2, 3], [2, None], [probe]),
        ProbedRow([1], [1, None], []),
        ProbedRow([4, 5], [1, 2], [probe]),
        ProbedRow([1], [1, None], [Probe([7], [False])]),
    ]
    # up to the token that predicts the last of the answer: neither that token nor what follows it is read
    assert queries(rows) == [
        Query(0, 0, 2, [1, 2, 7, 8], [2, 3], [8, 9]),
        Query(2, 0, 1, [4, 7, 8], [1, 2], [8, 9]),
        Query(2, 1, 2, [4, 5, 7, 8], [2, 3], [8, 9]),
    ]
    first = ProbedRow([1, 2], [2], [Probe([5], [True]), Probe([6], [False]), Probe([7], [True])])
    assert queries([first]) == [  # predicted by the context itself; the second alias has no token of its own
        Query(0, 0, 2, [1, 2], [1], [5], alias=0),
        Query(0, 0, 2, [1, 2], [1], [7], alias=2),
    ]


def test_joined_aliases():
    beliefs = torch.tensor([[-1.0, -2.0, NAN], [NAN, -3.0, NAN], [NAN, NAN, NAN]])
    assert join_aliases(beliefs[:2], "max").tolist() == [-1.0, -3.0]
    expected = [pytest.approx(math.log(math.exp(-1) + math.exp(-2))), -3.0]
    assert join_aliases(beliefs[:2], "logsumexp").tolist() == expected
    assert join_aliases(torch.tensor([[-0.1, -0.1]]), "logsumexp").item() == pytest.approx(
        -0.1 + math.log(2)
    )  # above 0
    for aliases in ("first", "max", "logsumexp"):
        assert join_aliases(beliefs, aliases)[2].isnan()
        alone = torch.randn(50, 1) * 9
        assert torch.equal(join_aliases(alone, aliases), alone[:, 0])  # to the bit


def test_a_table_of_beliefs():
    rows = [
        ProbedRow([1, 2, 3], [1, 3], [Probe([5], [True])]),
        ProbedRow([1, 2], [None, 2], [Probe([5, 6], [True, True])] * 2),
    ]
    found = queries(rows)
    means = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    assert [(query.row, query.end, query.alias) for query in found] == [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1)]
    table = belief_table(means, found, (2, 2), "max")
    torch.testing.assert_close(table, torch.tensor([[-1.0, -2.0], [NAN, -3.0]]), equal_nan=True)
    assert belief_table(means[:0], [], (2, 2), "max").isnan().all()


def test_mean_logps():
    logps, owner = torch.tensor([-1.0, -3.0, -5.0, -torch.inf]), torch.tensor([0, 0, 2, 3])
    assert mean_logps(logps, owner, 5).tolist()[::2] == [-2.0, -5.0, pytest.approx(torch.nan, nan_ok=True)]
    assert mean_logps(logps, owner, 5).isnan().tolist() == [False, True, False, True, True]


def test_rows_of_a_batch():
    batch = {
        "prompt_ids": torch.tensor([[0, 11, 12], [21, 22, 23]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[13, 14, 15, 16], [24, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
    }
    ends = torch.tensor([[3, -1], [-1, -1]])
    probe = Probe([7, 8], [True, False])
    first, second = probed_rows(batch, ends, [[probe], []], max_length=100)
    assert first == ProbedRow([11, 12, 13, 14, 15, 16], [2, 5, None], [probe])
    assert second == ProbedRow([21, 22, 23, 24], [3, None, None], [])
    # 5 tokens of context and 2 of the probe do not fit in 6: that boundary is left out, the prompt's is kept
    assert probed_rows(batch, ends, [[probe], []], max_length=6)[0].ends == [2, None, None]
    assert first.padded_to(4).ends == [2, 5, None, None]
    # An alias that does not fit leaves the context out for all, so that beliefs of a row are joined of the same aliases
    long = Probe([7] * 4, [True] * 4)
    assert probed_rows(batch, ends, [[probe, long], []], max_length=7)[0].ends == [2, None, None]
    assert probed_rows(batch, ends, [[probe, long], []], max_length=9)[0].ends == [2, 5, None]


def test_a_context_is_probed_once():
    probe, other = Probe([7, 8], [True, False]), Probe([7, 9], [True, False])
    rows = [
        ProbedRow([1, 2, 3, 4], [2, 3, 4], [probe]),
        ProbedRow([1, 2, 3, 9], [2, 3, 4], [probe]),  # the prompt and the first turn are row 0's
        ProbedRow([1, 2, 3, 4], [2, None, None], [probe, other]),  # another answer
        ProbedRow([1, 2], [2, None, None], []),
    ]
    unique, keys = share_contexts(rows)
    assert [row.ends for row in unique] == [[2, 3, 4], [None, None, 4], [2, None, None], [None, None, None]]
    assert keys[3] == [-1, -1, -1] and keys[2][1:] == [-1, -1]
    nan = torch.nan
    scored = torch.tensor([[1.0, 2.0, 3.0], [nan, nan, 4.0], [5.0, nan, nan], [nan, nan, nan]])
    expected = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [5.0, nan, nan], [nan, nan, nan]])
    torch.testing.assert_close(shared_beliefs(scored, torch.tensor(keys)), expected, equal_nan=True)


def test_a_context_that_two_processes_scored_has_the_first_ones_belief():
    beliefs, keys = torch.tensor([[1.0, 2.0], [1.1, 3.0]]), torch.tensor([[7, 8], [7, 9]])
    assert shared_beliefs(beliefs, keys).tolist() == [[1.0, 2.0], [1.0, 3.0]]
