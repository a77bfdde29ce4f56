"""The retriever, over real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from a2tgpo_trl.cli.main import main
from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, HTTPSearch
from a2tgpo_trl.search.retriever import open_or_build, run_retriever
from a2tgpo_trl.search.server import bind, make_app
from serving import serving

ATLAS = load_atlas()
CORPUS = [{"id": f"p{number}", **passage} for number, passage in enumerate(ATLAS.passages)]


@pytest.fixture(scope="module")
def local():
    return BM25Search(CORPUS, top_k=2)


@pytest.fixture(scope="module")
def port(local):
    with serving(make_app(local)) as port:
        yield port


def ask_by_hand(port, body):
    """What a server sends back for bytes that no library wrote."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + data)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def test_a_request_written_by_hand(port, local):
    first, second = local.retrieve(["capital of France", "capital of Japan"])
    status, answer = ask_by_hand(
        port, {"queries": ["capital of France", "capital of Japan"], "topk": 1, "return_scores": True}
    )
    assert status == 200
    assert answer == {
        "result": [
            [
                {
                    "document": {
                        "id": first[0]["id"],
                        "contents": '"Capital of France"\nThe capital of France is Paris.',
                    },
                    "score": first[0]["score"],
                }
            ],
            [
                {
                    "document": {
                        "id": second[0]["id"],
                        "contents": '"Capital of Japan"\nThe capital of Japan is Tokyo.',
                    },
                    "score": second[0]["score"],
                }
            ],
        ]
    }


def test_without_scores_the_result_is_documents(port):
    _, answer = ask_by_hand(port, {"queries": ["capital of France"], "topk": 1})
    ((document,),) = answer["result"]
    assert document["contents"].endswith("is Paris.")
    assert ask_by_hand(port, {"queries": ["capital of France"], "topk": 1, "return_scores": False})[1] == answer


@pytest.mark.parametrize(("topk", "number"), [(None, 2), (0, 2), (1, 1), (5, 5)])
def test_topk_is_the_servers_unless_given(port, topk, number):
    _, answer = ask_by_hand(port, {"queries": ["city", "xyzzy"], "topk": topk})
    assert [len(documents) for documents in answer["result"]] == [number, 0]


def test_our_client_finds_what_the_index_does(port, local):
    search = HTTPSearch(f"http://127.0.0.1:{port}/retrieve", top_k=2)
    queries = [passage["title"] for passage in CORPUS[:64]] + ["xyzzy"]
    keys = ("id", "title", "text", "score")
    remote = [[[hit[key] for key in keys] for hit in hits] for hits in search.retrieve(queries)]
    assert remote == [[[hit[key] for key in keys] for hit in hits] for hits in local.retrieve(queries)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(search.search, queries)) == list(map(local.search, queries))


def test_a_corpus_comes_back_as_it_was_written():
    contents = "Lyon\nA city; its title without quotes."
    with serving(make_app(BM25Search([{"contents": contents}]))) as port:
        _, answer = ask_by_hand(port, {"queries": ["lyon"]})
    assert answer == {"result": [[{"contents": contents}]]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "Lyon"}, "queries: Field required"),
        ({"queries": "Lyon"}, "queries: Input should be a valid list"),
        ({"queries": ["Lyon", 7]}, "queries.1: Input should be a valid string"),
        ({"queries": ["Lyon"], "topk": -1}, "topk: "),
        (b"{", "JSON"),
    ],
)
def test_a_bad_request_is_explained(port, body, message):
    status, answer = ask_by_hand(port, body)
    assert status == 422
    assert message in answer["detail"]
    assert answer["detail"].endswith('POST {"queries": [text, …], "topk": number, "return_scores": true or false}.')


def test_half_a_character_is_no_reason_to_fail(port):
    assert ask_by_hand(port, {"queries": ["\ud800", "\ud800 Kentron"], "topk": 1})[0] == 200


def test_health(port):
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).json() == {"status": "ok"}


def test_requests_are_answered_at_once():
    class Meeting:
        """Answers when two are asking."""

        top_k, both = 1, threading.Barrier(2)

        def retrieve(self, queries, top_k=None):
            self.both.wait(10)
            return [[] for _ in queries]

    with serving(make_app(Meeting())) as port, ThreadPoolExecutor(2) as pool:
        for status, answer in pool.map(lambda query: ask_by_hand(port, {"queries": [query]}), "ab"):
            assert (status, answer) == (200, {"result": [[]]})


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_up(port, process):
    for _ in range(300):
        assert process.poll() is None, process.communicate()
        try:
            return requests.get(f"http://127.0.0.1:{port}/health", timeout=10)
        except requests.ConnectionError:
            time.sleep(0.05)
    raise AssertionError("the retriever did not start")


@contextmanager
def retriever(**options):
    code = f"from a2tgpo_trl.search.retriever import run_retriever\nrun_retriever(**{options!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until_up(options["port"], process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def write_corpus(folder):
    corpus = folder / "wiki.jsonl"
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in CORPUS), encoding="utf-8")
    return corpus


def test_a_corpus_is_served_and_its_index_built_once(tmp_path):
    corpus, port = write_corpus(tmp_path), free_port()
    search = HTTPSearch(f"http://127.0.0.1:{port}/retrieve", top_k=1)
    with retriever(corpus=str(corpus), port=port):
        assert search.search("capital of France") == "(1) Capital of France: The capital of France is Paris."
    built = os.stat(f"{corpus}.bm25/index.json").st_mtime_ns
    with retriever(corpus=str(corpus), port=port, top_k=4):
        assert len(ask_by_hand(port, {"queries": ["city"]})[1]["result"][0]) == 4
    assert os.stat(f"{corpus}.bm25/index.json").st_mtime_ns == built


def test_an_index_of_another_corpus_is_refused(tmp_path):
    corpus = write_corpus(tmp_path)
    assert open_or_build(corpus, tmp_path / "index", top_k=1).search("Kentron").startswith("(1) Kentron")
    corpus.write_text('{"text": "Something else."}')
    with pytest.raises(ValueError, match=r"index was built with corpus_bytes=\d+, not 27"):
        open_or_build(corpus, tmp_path / "index")
    corpus.unlink()
    assert open_or_build(corpus, tmp_path / "index", top_k=1).search("Kentron").startswith("(1) Kentron")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "tfidf"}, ValueError, "kind is 'tfidf'"),
        ({"kind": "dense"}, ValueError, "needs an encoder"),
        ({"encoder": "e5"}, ValueError, "for kind='dense'"),
        ({"query_prefix": "query: "}, ValueError, "for kind='dense'"),
        ({}, FileNotFoundError, "missing.jsonl': there is no such file, nor an index of it"),
    ],
)
def test_mistakes_are_named_before_anything_is_served(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run_retriever(tmp_path / "missing.jsonl", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_without_its_libraries_the_error_says_what_to_install(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"a2tgpo-trl\[retriever\]"):
        run_retriever(write_corpus(tmp_path))
    assert not (tmp_path / "wiki.jsonl.bm25").exists()


@contextmanager
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_in_use_is_found_before_anything_is_built(tmp_path, capsys):
    corpus = write_corpus(tmp_path)
    with taken_port() as port:
        assert main(["retriever", "--corpus", str(corpus), "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: host '127.0.0.1' and port {port} cannot be served at (Address already in use)" in said.err
    assert [file.name for file in tmp_path.iterdir()] == ["wiki.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 99999}, "port is 99999; give one up to 65535"),
        ({"port": -1}, "port is -1"),
        ({"port": 0, "host": "300.1.1.1"}, "host '300.1.1.1' and port 0 cannot be served at"),
        ({"port": 0, "top_k": 0}, "top_k is 0; give 1 or more"),
    ],
)
def test_a_bad_place_is_named_before_anything_is_built(tmp_path, options, message):
    corpus = write_corpus(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_retriever(corpus, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["wiki.jsonl"]


def test_connections_are_refused_until_the_index_is_there(tmp_path, monkeypatch):
    opened = []

    def open_slowly(*args):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        opened.append(args)
        return open_or_build(*args)

    monkeypatch.setattr("a2tgpo_trl.search.retriever.open_or_build", open_slowly)
    monkeypatch.setattr("a2tgpo_trl.search.retriever.serve", lambda app, listener: served.append(listener))
    served, port = [], free_port()
    run_retriever(write_corpus(tmp_path), port=port)
    assert len(opened) == len(served) == 1


def test_the_printed_address_answers(tmp_path):
    corpus = write_corpus(tmp_path)
    command = [sys.executable, "-m", "a2tgpo_trl.cli", "retriever", "--port", "0", "--config", "retriever.yaml"]
    (tmp_path / "retriever.yaml").write_text(f"corpus: {corpus}\ntop_k: 3\n")
    with subprocess.Popen([*command, "--top-k", "1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            next(line for line in process.stdout if line.startswith("Building"))
            url = process.stdout.readline().split()[-1]
            found = requests.post(url, json={"queries": ["capital of France"]}, timeout=10).json()
            assert len(found["result"][0]) == 1
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_an_address_is_one_retrievers_before_it_listens():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be served at"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()
