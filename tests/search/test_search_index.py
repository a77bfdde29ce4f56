import json
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, open_search
from a2tgpo_trl.search.bm25 import BLOCK, _best, _lower_bound
from a2tgpo_trl.search.retriever import open_or_build
from a2tgpo_trl.search.stored import StoredPassages

ATLAS = load_atlas()
QUERIES = [question["supports"][0] for question in ATLAS.questions[:100]] + ["city", "capital of", "", "?", "xyzzy"]


def write(file, passages):
    file.write_text("".join(json.dumps(passage) + "\n" for passage in passages), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    BM25Search.build(write(root / "atlas.jsonl", ATLAS.passages), root / "new" / "atlas")
    return root / "new" / "atlas"


def test_an_index_finds_what_passages_in_memory_do(folder):
    held, mapped = BM25Search(ATLAS.passages, top_k=7), BM25Search.load(folder, top_k=7)
    assert mapped.retrieve(QUERIES) == held.retrieve(QUERIES)
    assert list(map(mapped.search, QUERIES)) == list(map(held.search, QUERIES))
    assert mapped.retrieve(["city"], top_k=2) == [held.retrieve(["city"])[0][:2]]


def test_options_of_a_loaded_index(folder):
    assert BM25Search.load(folder, top_k=1, show_titles=False, max_words=1).search("Kentron") == "Kentron …"
    with pytest.raises(ValueError, match="top_k is 0"):
        BM25Search.load(folder, top_k=0)
    with pytest.raises(TypeError, match="topk"):
        BM25Search.load(folder, topk=3)


def test_an_index_is_mapped_not_read(folder):
    search = BM25Search.load(folder)
    assert all(isinstance(search._index.scores[name], np.memmap) for name in ("data", "indices", "indptr"))
    assert isinstance(search.passages, StoredPassages)
    assert isinstance(search.passages._lines, mmap.mmap)


def test_processes_share_an_index(folder):
    code = f"from a2tgpo_trl.search import BM25Search; print(BM25Search.load({str(folder)!r}).search('Kentron'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = BM25Search.load(folder).search("Kentron")
    assert [process.communicate()[0].strip() for process in running] == [expected, expected]


def test_threads_read_an_index_at_once(folder):
    search = BM25Search.load(folder)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(search.search, QUERIES * 3)) == list(map(search.search, QUERIES)) * 3


def test_equal_scores_keep_the_order_given_whatever_the_bound():
    passages = [{"text": "city city" if number % 3 else "city town", "number": number} for number in range(300)]
    search = BM25Search(passages)
    whole = [hit["number"] for hit in search.retrieve(["city"], top_k=300)[0]]
    assert whole == sorted(range(300), key=lambda number: number % 3 == 0)  # sorted is stable
    for top_k in (1, 2, 199, 200, 201, 250, 299, 1000):
        assert [hit["number"] for hit in search.retrieve(["city"], top_k=top_k)[0]] == whole[:top_k]


@pytest.mark.parametrize("number", [1, 5, 16, 50, 1000])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_best_are_those_of_a_full_sort(monkeypatch, number, share):
    """Scores of several blocks, and of a piece of one, with many equal ones."""
    monkeypatch.setattr("a2tgpo_trl.search.bm25.BLOCK", 16)
    draw = np.random.default_rng(number)
    for _ in range(20):
        scores = (draw.integers(1, 9, number) * (draw.random(number) < share)).astype(np.float32)
        for top_k in (1, 3, 7):
            order = np.argsort(-scores, kind="stable")[:top_k]
            assert _best(scores, top_k) == [position for position in order if scores[position] > 0]


def test_few_scores_are_compared_to_find_the_best():
    scores = np.random.default_rng(0).random(100 * BLOCK, dtype=np.float32)  # each of them above zero
    assert (scores >= _lower_bound(scores, 3)).sum() < 50


def test_an_index_needs_its_corpus_no_more(tmp_path):
    corpus = write(tmp_path / "wiki.jsonl", [{"id": 7, "contents": '"Lyon"\nA city.'}])
    BM25Search.build(corpus, tmp_path / "index")
    corpus.unlink()
    (hit,) = BM25Search.load(tmp_path / "index").retrieve(["lyon"])[0]
    assert {**hit, "score": None} == {
        "id": 7,
        "contents": '"Lyon"\nA city.',
        "title": "Lyon",
        "text": "A city.",
        "score": None,
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "fine"}', '{"body": "a city"}'], "wiki.jsonl, line 2 has neither"),
        ([], "wiki.jsonl holds no passages"),
        (['{"text": "of the"}'], "no word"),
    ],
)
def test_after_a_failed_build_nothing_is_there(tmp_path, lines, message):
    corpus = tmp_path / "wiki.jsonl"
    corpus.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        BM25Search.build(corpus, tmp_path / "index")
    assert list(tmp_path.iterdir()) == [corpus]


def test_what_a_killed_build_left_is_in_nobodys_way(tmp_path):
    """In a container the next process may have the same number."""
    corpus = write(tmp_path / "wiki.jsonl", ATLAS.passages[:3])
    (tmp_path / f"index.partial-{os.getpid()}").mkdir()
    BM25Search.build(corpus, tmp_path / "index")
    assert (tmp_path / "index" / "index.json").is_file()


def test_an_index_is_not_built_over_another(tmp_path):
    corpus = write(tmp_path / "wiki.jsonl", ATLAS.passages[:3])
    BM25Search.build(corpus, tmp_path / "index")
    with pytest.raises(FileExistsError, match="index is there already"):
        BM25Search.build(corpus, tmp_path / "index")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "bm25", "version": 99}, "format 99"),
        (
            {"kind": "bm25", "version": 1},
            "bm25 index of format 1, .* reads format 2; delete the folder and build the index again",
        ),
        ({"kind": "dense", "version": 1}, "of kind 'dense', not 'bm25'"),
    ],
)
def test_other_indexes_are_refused(tmp_path, description, message):
    (tmp_path / "index.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        BM25Search.load(tmp_path)


def test_indexes_of_words_split_otherwise_are_refused_everywhere(tmp_path):
    """Format 1 dropped single characters, and knew no script without spaces."""
    corpus = write(tmp_path / "wiki.jsonl", ATLAS.passages[:3])
    BM25Search.build(corpus, tmp_path / "wiki.jsonl.bm25")
    description = tmp_path / "wiki.jsonl.bm25" / "index.json"
    assert json.loads(description.read_text())["version"] == 2
    description.write_text(description.read_text().replace('"version": 2', '"version": 1'))
    for load in (BM25Search.load, open_search):
        with pytest.raises(ValueError, match="format 1"):
            load(tmp_path / "wiki.jsonl.bm25")
    with pytest.raises(ValueError, match="format 1"):
        open_or_build(corpus)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        BM25Search.load(tmp_path / "missing")
