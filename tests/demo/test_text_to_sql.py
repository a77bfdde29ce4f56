"""The task of the recipe `text-to-sql`: tables of the atlas, questions with their queries, and where the policy comes from."""

import random
from collections import Counter

import pytest
import torch

from a2tgpo_trl.demo.text_to_sql.policy import WarmStart, loss_of, make_model, make_tokenizer, names, trace, traces
from a2tgpo_trl.demo.text_to_sql.tables import (
    KINDS,
    SENTENCES,
    TABLES,
    ask_questions,
    evenly,
    open_database,
    split_questions,
)
from a2tgpo_trl.sql import QueryError, is_ordered, same_rows


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return open_database(tmp_path_factory.mktemp("tables") / "new" / "atlas.db")


@pytest.fixture(scope="module")
def questions(database):
    return ask_questions(database)


def test_the_tables_hold_all_facts(database):
    counts = {table: database.rows(f"SELECT COUNT(*) FROM {table}")[0][0] for table in TABLES}
    assert counts == {"country": 246, "city": 1219, "airport": 296, "anthem": 118} and len(SENTENCES) == 5
    assert database.rows("SELECT * FROM country WHERE name = 'Gambia'") == [("Gambia", "Banjul", "Dalasi")]
    assert database.rows("SELECT COUNT(*) FROM airport JOIN city ON city.name = airport.city") == [(296,)]


def test_the_file_is_written_once(database):
    before = database.path.stat()
    assert open_database(database.path).rows("SELECT 1") == [(1,)]
    assert database.path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(database.path.parent.iterdir()) == [database.path]


def test_every_reference_returns_rows_and_no_mistake_returns_the_same(database, questions):
    for question in evenly(questions, 120):
        expected = database.rows(question["answer"])
        assert expected
        for mistake in candidates(question)[1:]:
            try:
                found = database.rows(mistake.format(question["name"]))
            except QueryError as error:
                assert "no such" in str(error)
            else:
                assert not same_rows(found, expected, is_ordered(question["answer"])), question


def test_words_alone_do_not_tell_the_table(questions):
    asked = Counter(kind.question for kind in KINDS)
    assert sorted(asked.values()) == [1, 1, 3, 3]
    assert len({(question["question"], question["answer"]) for question in questions}) == len(questions)
    assert len({question["question"] for question in questions}) == len(questions)  # a name is in one table


def test_held_out_questions_are_about_other_countries(questions):
    train, held_out = split_questions(questions)
    assert not {q["country"] for q in train} & {q["country"] for q in held_out}
    for part in (train, held_out):
        assert {question["kind"] for question in part} == set(range(len(KINDS)))
    assert Counter(question["kind"] for question in evenly(held_out, 96)) == dict.fromkeys(range(len(KINDS)), 12)


def test_scripted_rollouts_end_with_a_query_and_some_check_it(database, questions):
    chance, right, numbers = random.Random(0), 0, Counter()
    for question in questions[:200]:
        *asked, (answer, nothing) = trace(chance, question, database, WarmStart())
        sql = answer.removeprefix("<answer>").removesuffix("</answer>")
        assert nothing == "" and sql in [q.format(question["name"]) for q in candidates(question)]
        assert all(read.startswith("<result>") for _, read in asked)
        assert len({written for written, _ in asked}) == len(asked)  # no draft twice
        right += sql == question["answer"]
        numbers[len(asked)] += 1
    assert 60 < right < 140 and numbers.keys() >= {0, 1, 2, 3}
    always = list(trace(chance, questions[0], database, WarmStart(unchecked=0.0, stubborn=0.0)))
    assert always[-1][0] == f"<answer>{questions[0]['answer']}</answer>"


def candidates(question):
    kind = KINDS[question["kind"]]
    return kind.sql, *kind.mistakes


def test_what_is_written_can_be_spelled_and_is_learned(database, questions):
    tokenizer = make_tokenizer(questions, database)
    for question in questions[:50]:
        for query in candidates(question):
            ids = tokenizer(query.format(question["name"]))["input_ids"]
            assert tokenizer.unk_token_id not in ids
        assert database.rows(tokenizer.decode(tokenizer(question["answer"])["input_ids"])) == database.rows(
            question["answer"]
        )
    ids, labels = next(traces(questions, names(questions), database, tokenizer, WarmStart()))
    learned = [i for i, label in zip(ids, labels, strict=True) if label != -100]
    assert learned == [label for label in labels if label != -100]
    text = tokenizer.decode(learned)
    assert "?" not in text and "<result>" not in text and text.endswith("</answer>")


def test_names_are_replaced_and_copied(database, questions):
    tokenizer = make_tokenizer(questions, database)
    row = next(traces(questions[:1], names(questions), database, tokenizer, WarmStart(seed=1)))[0]
    found = {i for i in row if i in tokenizer.convert_tokens_to_ids(names(questions))}
    assert len(found) >= 1 and tokenizer.convert_tokens_to_ids(questions[0]["name"]) not in found


def test_the_loss_is_that_of_what_is_written(database, questions):
    tokenizer = make_tokenizer(questions, database)
    model, rows = make_model(tokenizer, 0), traces(questions, names(questions), database, tokenizer, WarmStart())
    ids, labels = zip(*(next(rows) for _ in range(3)), strict=True)
    alone = [loss_of(model, ids[i : i + 1], labels[i : i + 1]) for i in range(3)]
    theirs = model(input_ids=torch.tensor(ids[:1]), labels=torch.tensor(labels[:1])).loss
    assert alone[0].item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = torch.tensor([sum(label != -100 for label in own) for own in labels], dtype=torch.float)
    assert loss_of(model, ids, labels).item() == pytest.approx(
        (torch.stack(alone) * weights).sum().item() / weights.sum().item(), rel=1e-4
    )
