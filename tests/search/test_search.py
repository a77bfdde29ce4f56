import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers.utils import get_json_schema

from a2tgpo_trl.search import BM25Search
from a2tgpo_trl.search.tool import NO_QUERY, NO_RESULT

PASSAGES = [
    {"title": "Lyon", "text": "Lyon is a city in France.", "id": 7},
    {"title": "Bern", "text": "Bern is a city in Switzerland."},
    "Brasília is the seat of Brazil's government.",
]


@pytest.fixture(scope="module")
def tool():
    return BM25Search(PASSAGES)


def test_search_numbers_what_it_finds(tool):
    # Both passages have 4 words, "city" once each: equal scores keep the order given
    assert tool.search("city") == "(1) Lyon: Lyon is a city in France.\n(2) Bern: Bern is a city in Switzerland."
    assert tool.search("Where is Bern?") == "(1) Bern: Bern is a city in Switzerland."


def test_a_passage_without_a_title_is_its_text(tool):
    assert tool.search("government") == "(1) Brasília is the seat of Brazil's government."


def test_titles_can_be_hidden():
    bare = BM25Search(PASSAGES, show_titles=False)
    assert bare.search("city") == "Lyon is a city in France.\nBern is a city in Switzerland."


def test_titles_are_searched():
    tool = BM25Search([{"title": "Lek", "text": "Money of Albania."}, {"title": "Euro", "text": "Money of France."}])
    assert tool.search("euro") == "(1) Euro: Money of France."


def test_top_k_bounds_what_is_found():
    assert BM25Search(PASSAGES, top_k=1, show_titles=False).search("city") == "Lyon is a city in France."
    assert len(BM25Search(PASSAGES, top_k=99).retrieve(["city"])[0]) == 2  # the third has no word of the query


def test_equal_scores_keep_the_order_given():
    passages = [{"text": "city city" if number % 3 else "city town", "number": number} for number in range(300)]
    found = [hit["number"] for hit in BM25Search(passages, top_k=300).retrieve(["city"])[0]]
    assert found == sorted(range(300), key=lambda number: number % 3 == 0)  # sorted is stable


def test_accents_and_case_do_not_matter(tool):
    for query in ["brasilia", "BRASÍLIA", "Brasi\u0301lia"]:
        assert tool.retrieve([query])[0][0]["text"].startswith("Brasília")


@pytest.mark.parametrize(("query", "text"), [("", NO_QUERY), (" \n", NO_QUERY), ("Tirana", NO_RESULT)])
def test_a_search_that_finds_nothing_says_so(tool, query, text):
    assert tool.search(query) == text


@pytest.mark.parametrize("query", ["?!", "of the", "Tirana", ""])
def test_retrieve_finds_nothing_where_no_word_matches(tool, query):
    assert tool.retrieve([query]) == [[]]


def test_retrieve_gives_copies_with_scores(tool):
    hits = tool.retrieve(["Lyon", "Bern"])
    assert [[hit["title"] for hit in row] for row in hits] == [["Lyon"], ["Bern"]]
    assert hits[0][0]["id"] == 7
    hits[0][0]["text"] = "changed"
    assert tool.search("Lyon") == "(1) Lyon: Lyon is a city in France."
    assert tool.retrieve([]) == []


def test_scores_are_bm25():
    tool = BM25Search(["red red green", "green blue"])
    # 2 passages of 3 and 2 words, mean 5/2. "red" is in 1 of them: idf = ln(1 + (2 − 1 + 0.5) / (1 + 0.5)) = ln 2.
    # It is there twice: 2 / (2 + 1.5 (1 − 0.75 + 0.75 · 3 / 2.5)) = 2 / (2 + 1.5 · 1.15) = 2 / 3.725
    (hit,) = tool.retrieve(["red"])[0]
    assert hit["score"] == pytest.approx(math.log(2) * 2 / 3.725, rel=1e-5)


def test_the_schema_of_the_tool(tool):
    function = get_json_schema(tool.search)["function"]
    assert function["name"] == "search"
    assert function["parameters"]["required"] == ["query"]
    assert function["parameters"]["properties"]["query"]["type"] == "string"
    assert all([function["description"], function["parameters"]["properties"]["query"]["description"]])


def test_threads_get_the_same_answers(tool):
    queries = ["city", "Lyon", "Bern", "government", ""] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tool.search, queries)) == [tool.search(query) for query in queries]


def test_nothing_is_printed(capfd):
    BM25Search(PASSAGES).search("city")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passages": []}, "passages is empty"),
        ({"passages": ["the", "of"]}, "no word"),
        ({"passages": PASSAGES, "top_k": 0}, "top_k is 0"),
        ({"passages": ["Lyon", {"title": "Bern", "body": "A city."}]}, r"passages\[1\].*\['body', 'title'\]"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BM25Search(**arguments)


def test_without_bm25s_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"a2tgpo-trl\[search\]"):
        BM25Search(PASSAGES)


def test_the_leaves_import_nothing_heavy():
    code = (
        "import sys, a2tgpo_trl.search, a2tgpo_trl.rewards, a2tgpo_trl.data\n"
        "print([name for name in ('torch', 'trl', 'transformers', 'datasets', 'bm25s') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_searches_on_many_threads_find_what_one_finds():
    tool = BM25Search([f"city {i} lies by river {i % 7} in land {i % 13}" for i in range(200)])
    queries = [f"city {i} river {i % 5}" for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(tool.search, queries)) == list(map(tool.search, queries))
