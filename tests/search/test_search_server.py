"""The retriever, over real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from a2tgpo_trl.cli.main import main
from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, HTTPSearch
from a2tgpo_trl.search.bounds import Limits
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


# ---- hostile requests


def peak_mb(process):
    with open(f"/proc/{process.pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"queries": ["x"] * 1025}, 422, "queries: List should have at most 1024 items"),
        ({"queries": ["x" * 10_001]}, 422, "queries.0: String should have at most 10000 characters"),
        ({"queries": ["x"], "topk": 101}, 422, "topk: Input should be less than or equal to 100"),
        ({"queries": ["x"], "topk": 10**9}, 422, "topk: "),
        ({"queries": ["x" * 5 * 2**20]}, 413, "A request may have 4194304 bytes (the retriever's option max_body_mb)"),
        ({"queries": [1] * 10**6}, 422, "queries.0: Input should be a valid string. POST"),
        ({"queries": [1], "topk": -1, "return_scores": "x"}, 422, "queries.0: "),
        (b"[" * 100_000, 400, "parsing the body"),
        (b'{"topk": ' + b"1" * 5_000 + b"}", 400, "parsing the body"),
        (b"\xff", 400, "parsing the body"),
    ],
)
def test_requests_are_bounded(port, body, status, message):
    found, answer = ask_by_hand(port, body)
    assert (found, message in answer["detail"]) == (status, True), answer["detail"][:300]
    assert len(answer["detail"]) < 500


def test_the_largest_requests_are_answered(port):
    status, answer = ask_by_hand(port, {"queries": ["city"] * 1024, "topk": 100})
    assert status == 200 and {len(found) for found in answer["result"]} == {100}
    assert ask_by_hand(port, {"queries": ["capital " * 1250], "topk": 1})[0] == 200


def test_bounds_are_options(local):
    limits = Limits(max_queries=1, max_query_length=5, max_topk=2, max_body_mb=0.001)
    with serving(make_app(local, limits), limits) as port:
        assert ask_by_hand(port, {"queries": ["Lyon"], "topk": 2})[0] == 200
        for body in ({"queries": ["a", "b"]}, {"queries": ["London"]}, {"queries": ["Lyon"], "topk": 3}):
            assert ask_by_hand(port, body)[0] == 422
        assert ask_by_hand(port, {"queries": ["a" * 1100]})[0] == 413


def test_bounds_that_are_documented_are_those_that_there_are():
    text = (Path(__file__).parents[2] / "docs/search.md").read_text(encoding="utf-8")
    section = text[text.index("## A retriever") : text.index("## HTTPSearch")]
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+)", section, flags=re.MULTILINE)
    assert {name: float(value.replace(",", "")) for name, value in rows} == asdict(Limits())


def test_bounds_are_options_of_the_command(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr("a2tgpo_trl.search.retriever.serve", lambda app, listener, limits: served.append(limits))
    bounds = dict(max_queries=7, max_query_length=8, max_topk=9, max_body_mb=0.5, request_timeout=3.0)
    flags = [word for name, value in bounds.items() for word in (f"--{name}", str(value))]
    assert main(["retriever", "--corpus", str(write_corpus(tmp_path)), "--port", "0", *flags]) == 0
    assert served == [Limits(**bounds)]


def test_a_body_without_a_length_is_bounded_too(port):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head + chunk * 65 + b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_hostile_requests_take_little_memory_and_leave_the_server_responsive(tmp_path):
    """Ten clients send what took gigabytes; /health answers meanwhile."""
    corpus = write_corpus(tmp_path)
    hostile = [b'{"queries": [' + b"1," * 2_000_000 + b"1]}", b'{"queries": ["' + b"x " * 25_000_000 + b'"]}']
    hostile += [json.dumps({"queries": ["city"] * 1024, "topk": 100}).encode()]
    with retriever(corpus=str(corpus), port=0) as (process, port), ThreadPoolExecutor(6) as pool:
        before = peak_mb(process)
        sent = [pool.submit(ask_by_hand, port, body) for body in hostile * 2]
        while not all(request.done() for request in sent):
            assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json() == {"status": "ok"}
        assert sorted(request.result()[0] for request in sent) == [200, 200, 413, 413, 422, 422]
        assert peak_mb(process) - before < 600


def test_health_is_told_while_all_threads_search():
    class Stuck:
        top_k, done = 1, threading.Event()

        def retrieve(self, queries, top_k=None):
            self.done.wait(20)
            return [[] for _ in queries]

    with serving(make_app(Stuck())) as port, ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(ask_by_hand, port, {"queries": ["x"]}) for _ in range(60)]  # the server has 40 threads
        time.sleep(1)
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json() == {"status": "ok"}
        assert not any(request.done() for request in asked)
        Stuck.done.set()
        assert {request.result()[0] for request in asked} == {200}


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"POST /retrieve HTT",
        b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HT",  # a whole request, and half of another
    ],
    ids=["nothing", "head", "body", "further"],
)
def test_half_a_request_times_out(local, part):
    limits = Limits(request_timeout=0.5)
    with serving(make_app(local), limits) as port:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as half:
            half.sendall(part)
            received = b"".join(iter(lambda: half.recv(65536), b""))
        assert 0.4 < time.monotonic() - start < 5
        assert received.count(b"200 OK") == part.count(b"\r\n\r\nGET")
        assert b"408 Request Timeout" in received


def test_slow_bytes_are_no_longer_a_request(local):
    limits = Limits(request_timeout=0.5)
    with (
        serving(make_app(local), limits) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as slow,
        pytest.raises(OSError),
    ):
        for byte in b"POST /retrieve HTTP/1.1\r\nX: " + b"x" * 100:
            slow.sendall(bytes([byte]))
            time.sleep(0.05)


def test_unused_connections_and_long_searches_outlast_the_timeout(local):
    class Slow:
        top_k = 1

        def retrieve(self, queries, top_k=None):
            time.sleep(1.1)
            return [[] for _ in queries]

    body = json.dumps({"queries": ["x"]})
    with serving(make_app(Slow()), Limits(request_timeout=1.0)) as port:
        connection, sockets = http.client.HTTPConnection("127.0.0.1", port, timeout=10), set()
        for pause in (1.1, 0):
            connection.request("POST", "/retrieve", body, {"Content-Type": "application/json"})
            sockets.add(connection.sock)
            assert connection.getresponse().read() == b'{"result": [[]]}'
            time.sleep(pause)
        assert len(sockets) == 1
        connection.close()


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


@contextmanager
def retriever(**options):
    """A process that answers, and its port."""
    code = f"from a2tgpo_trl.search.retriever import run_retriever\nrun_retriever(**{options!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next((line.split()[-1] for line in process.stdout if " passages at " in line), None)
            assert url, "the retriever did not start"
            assert requests.get(url.replace("/retrieve", "/health"), timeout=120).ok
            yield process, urlsplit(url).port
        finally:
            process.send_signal(signal.SIGTERM)


def write_corpus(folder):
    corpus = folder / "wiki.jsonl"
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in CORPUS), encoding="utf-8")
    return corpus


def test_a_corpus_is_served_and_its_index_built_once(tmp_path):
    corpus = write_corpus(tmp_path)
    with retriever(corpus=str(corpus), port=0) as (_, port):
        search = HTTPSearch(f"http://127.0.0.1:{port}/retrieve", top_k=1)
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
        ({"port": 0, "top_k": 200}, "top_k is 200, above max_topk=100"),
    ],
)
def test_a_bad_place_is_named_before_anything_is_built(tmp_path, options, message):
    corpus = write_corpus(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_retriever(corpus, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["wiki.jsonl"]


def test_connections_are_refused_until_the_index_is_there(tmp_path, monkeypatch):
    bound, opened, served = [], [], []

    def bind_and_tell(*place):
        bound.append(bind(*place))
        return bound[0]

    def open_slowly(*args):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound[0].getsockname(), timeout=10)
        opened.append(args)
        return open_or_build(*args)

    monkeypatch.setattr("a2tgpo_trl.search.retriever.bind", bind_and_tell)
    monkeypatch.setattr("a2tgpo_trl.search.retriever.open_or_build", open_slowly)
    monkeypatch.setattr("a2tgpo_trl.search.retriever.serve", lambda app, listener, limits: served.append(listener))
    run_retriever(write_corpus(tmp_path), port=0)
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
