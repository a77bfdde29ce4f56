from collections import Counter

import pytest

from a2tgpo_trl.data import load_atlas, split_by_entity, to_dataset
from a2tgpo_trl.rewards import normalize_answer
from a2tgpo_trl.search import BM25Search

QUESTIONS = [
    {"question": f"Where is {name}?", "answer": [name], "kind": "k", "country": country, "supports": []}
    for name, country in [("a", "A"), ("b", "B"), ("a2", "A"), ("c", "C"), ("d", "D"), ("e", "E"), ("b2", "B")]
]


@pytest.fixture(scope="module")
def atlas():
    return load_atlas()


@pytest.fixture(scope="module")
def first_hits(atlas):
    """The one passage that each query finds, by query: titles of supports and questions."""
    titles = {title for question in atlas.questions for title in question["supports"]}
    queries = sorted(titles) + [question["question"] for question in atlas.questions]
    hits = BM25Search(atlas.passages, top_k=1).retrieve(queries)
    return dict(zip(queries, hits, strict=True))


def holds(text, answers):
    return any(f" {normalize_answer(answer)} " in f" {normalize_answer(text)} " for answer in answers)


def test_atlas_has_the_kinds_it_names(atlas):
    kinds = Counter(question["kind"] for question in atlas.questions)
    assert set(kinds) == {"city_capital", "city_currency", "capital_currency", "anthem_currency", "airport_currency"}
    assert min(kinds.values()) >= 100
    assert kinds["city_capital"] >= 900 and kinds["city_currency"] >= 900


def test_atlas_names_its_sources(atlas):
    for source in ["CIA World Factbook", "GeoNames", "CC BY 4.0", "airportsdata", "pyworldatlas", "Unicode"]:
        assert source in atlas.attribution


def test_atlas_passages_are_single_sentences_with_titles_of_their_own(atlas):
    titles = [passage["title"] for passage in atlas.passages]
    assert len(set(titles)) == len(titles)
    assert all(set(passage) == {"title", "text"} for passage in atlas.passages)
    assert all(passage["text"].endswith(".") and len(passage["text"]) < 120 for passage in atlas.passages)


def test_atlas_questions_are_complete_and_unique(atlas):
    texts = [question["question"] for question in atlas.questions]
    assert len(set(texts)) == len(texts)
    for question in atlas.questions:
        assert set(question) == {"question", "answer", "kind", "country", "supports"}
        assert len(question["supports"]) == (3 if question["kind"] == "airport_currency" else 2)
        aliases = [normalize_answer(answer) for answer in question["answer"]]
        assert all(aliases) and len(set(aliases)) == len(aliases)


def test_atlas_supports_lead_from_the_question_to_the_answer(atlas):
    texts = {passage["title"]: passage["text"] for passage in atlas.passages}
    for question in atlas.questions:
        *before, last = question["supports"]
        assert before[0] in question["question"]
        assert question["country"].removeprefix("The ") in texts[before[-1]]
        assert question["country"].removeprefix("The ") in last
        assert question["answer"][0] in texts[last]  # word for word, so that a model can copy it


def test_atlas_answers_stand_in_the_last_support_only(atlas):
    texts = {passage["title"]: passage["text"] for passage in atlas.passages}
    for question in atlas.questions:
        early = [question["question"], *(texts[title] for title in question["supports"][:-1])]
        assert not any(holds(text, question["answer"]) for text in early)


def test_atlas_searching_each_title_finds_each_support(atlas, first_hits):
    found = [
        all(first_hits[title][0]["title"] == title for title in question["supports"]) for question in atlas.questions
    ]
    assert sum(found) >= 0.98 * len(found)


def test_atlas_one_search_does_not_answer(atlas, first_hits):
    for kind in {question["kind"] for question in atlas.questions}:
        questions = [question for question in atlas.questions if question["kind"] == kind]
        solved = [holds(first_hits[question["question"]][0]["text"], question["answer"]) for question in questions]
        assert sum(solved) <= 0.15 * len(solved), kind


def test_atlas_guessing_the_commonest_answer_does_not_pay(atlas):
    for kind in {question["kind"] for question in atlas.questions}:
        answers = Counter(question["answer"][0] for question in atlas.questions if question["kind"] == kind)
        assert max(answers.values()) <= 0.05 * answers.total(), kind


def test_atlas_order_is_mixed(atlas):
    assert len({question["kind"] for question in atlas.questions[:100]}) >= 4
    assert len({question["country"] for question in atlas.questions[:100]}) >= 50


def test_split_keeps_entities_apart_and_order(atlas):
    train, held_out = split_by_entity(atlas.questions)
    countries = [{question["country"] for question in part} for part in (train, held_out)]
    assert not countries[0] & countries[1]
    assert len(countries[1]) == round(0.2 * len(countries[0] | countries[1]))
    assert [q for q in atlas.questions if q["country"] in countries[0]] == train
    assert [q for q in atlas.questions if q["country"] in countries[1]] == held_out


def test_split_depends_on_the_seed_alone():
    assert split_by_entity(QUESTIONS, seed=1) == split_by_entity(QUESTIONS, seed=1)
    parts = [{q["country"] for q in split_by_entity(QUESTIONS, seed=seed)[1]} for seed in range(10)]
    assert len({frozenset(part) for part in parts}) > 1
    assert {q["country"] for q in split_by_entity(QUESTIONS[::-1], seed=1)[1]} == parts[1]


@pytest.mark.parametrize(("share", "number"), [(0.01, 1), (0.4, 2), (0.99, 4)])
def test_split_holds_out_a_share_of_the_entities(share, number):
    # 5 countries: 0.05 and 4.95 round to 0 and 5, but either side gets one
    _, held_out = split_by_entity(QUESTIONS, held_out=share)
    assert len({question["country"] for question in held_out}) == number


def test_split_by_another_key():
    train, held_out = split_by_entity([{"city": "x"}, {"city": "y"}, {"city": "x"}], key="city", held_out=0.5)
    assert sorted([len(train), len(held_out)]) == [1, 2]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_split_refuses_shares_that_leave_a_part_empty(share):
    with pytest.raises(ValueError, match="held_out is"):
        split_by_entity(QUESTIONS, held_out=share)


def test_split_names_the_question_without_the_key():
    with pytest.raises(ValueError, match=r"questions\[1\] has no 'country'; it has \['answer', 'question'\]"):
        split_by_entity([QUESTIONS[0], {"question": "Why?", "answer": ""}])


def test_split_needs_two_entities():
    with pytest.raises(ValueError, match="two values of 'country'"):
        split_by_entity(QUESTIONS[:1])


@pytest.mark.parametrize("cell", [[["b"]], ["b", None], 7])
def test_to_dataset_names_a_cell_that_is_no_answer(cell):
    with pytest.raises(ValueError, match=r"questions\[1\]: 'answer' must be text or a list of texts, got "):
        to_dataset([QUESTIONS[0], {**QUESTIONS[1], "answer": cell}])


def test_to_dataset():
    dataset = to_dataset([*QUESTIONS[:1], {**QUESTIONS[1], "answer": "bb"}])
    assert dataset.column_names == ["prompt", "answer", "question", "kind", "country"]
    assert dataset[0] == {
        "prompt": "Question: Where is a?\n",
        "answer": ["a"],
        "question": "Where is a?",
        "kind": "k",
        "country": "A",
    }
    assert dataset["answer"][:] == [["a"], ["bb"]]  # a text becomes a list of one alias


def test_to_dataset_keeps_the_columns_that_all_questions_have():
    rows = [{"question": "Why?", "answer": "x", "kind": "k"}, {"question": "Who?", "answer": "y"}]
    assert to_dataset(rows).column_names == ["prompt", "answer", "question"]


def test_to_dataset_fills_the_template():
    template = 'Reply {"like": "this"} to: {question}'
    assert to_dataset(QUESTIONS, template)[0]["prompt"] == 'Reply {"like": "this"} to: Where is a?'
    messages = to_dataset(QUESTIONS, "Q: {question}", conversational=True)[0]["prompt"]
    assert messages == [{"role": "user", "content": "Q: Where is a?"}]


def test_to_dataset_names_what_is_wrong():
    with pytest.raises(ValueError, match="prompt_template is 'Answer!'"):
        to_dataset(QUESTIONS, "Answer!")
    with pytest.raises(ValueError, match=r"questions\[0\] has no 'answer'; it has \['question'\]"):
        to_dataset([{"question": "Why?"}])
