"""The client, against servers that do as they are told."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from transformers.utils import get_json_schema

from a2tgpo_trl.search import HTTPSearch
from a2tgpo_trl.search.batching import Batcher
from a2tgpo_trl.search.http import _proxy
from a2tgpo_trl.search.tool import NO_QUERY, NO_RESULT


def found(query, top_k=1):
    """What the servers find: as many passages as wanted, whose texts say for which query."""
    document = {"contents": f'"About {query}"\nFound for {query}.'}
    return [{"document": document, "score": 2.0 - rank} for rank in range(top_k)]


def fine(body):
    return 200, {"result": [found(query, body["topk"]) for query in body["queries"]]}


class Server:
    """Answers with what `respond` makes of a request's number and body, a status and content; keeps the bodies."""

    def __init__(self, respond, headers):
        self.bodies, self.connections = [], set()
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    self.bodies.append(body)
                    self.connections.add(handler.client_address)
                    number = len(self.bodies)
                response = respond(number, body)
                if response is None:
                    handler.close_connection = True
                    return
                status, content = response
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                handler.send_response(status)
                for name, value in {"Content-Length": len(data), **headers}.items():
                    handler.send_header(name, str(value))
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(handler, *args):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

        self.http = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/retrieve"


@contextmanager
def serving(respond=lambda number, body: fine(body), **headers):
    server = Server(respond, {name.replace("_", "-"): value for name, value in headers.items()})
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.search.http.BACK_OFF_SECONDS", 0.01)


def test_what_is_asked_and_what_is_read():
    with serving() as server:
        search = HTTPSearch(server.url, top_k=2, deduplicate=False)
        assert search.search("Lyon") == "(1) About Lyon: Found for Lyon.\n(2) About Lyon: Found for Lyon."
        assert server.bodies == [{"queries": ["Lyon"], "topk": 2, "return_scores": True}]
        (hits,) = search.retrieve(["Lyon"])
    assert hits[0]["contents"] == '"About Lyon"\nFound for Lyon.'
    assert [hit["score"] for hit in hits] == [2.0, 1.0]


def test_rendering_is_that_of_all_searches():
    with serving() as server:
        assert HTTPSearch(server.url, show_titles=False).search("Lyon") == "Found for Lyon."
        assert HTTPSearch(server.url, max_words=2).search("Lyon") == "(1) About Lyon: Found for …"


def test_documents_without_scores_are_read_too():
    with serving(lambda number, body: (200, {"result": [[{"id": "7", "contents": "Lyon\nA city."}]]})) as server:
        hit = {"id": "7", "contents": "Lyon\nA city.", "title": "Lyon", "text": "A city.", "score": None}
        assert HTTPSearch(server.url).retrieve(["x"]) == [[hit]]


def test_no_query_and_no_result():
    with serving(lambda number, body: (200, {"result": [[]]})) as server:
        search = HTTPSearch(server.url)
        assert search.search(" ") == NO_QUERY
        assert search.retrieve([]) == []
        assert server.bodies == []
        assert search.search("Lyon") == NO_RESULT


def test_the_schema_of_the_tool():
    function = get_json_schema(HTTPSearch("http://127.0.0.1:1/retrieve").search)["function"]
    assert (function["name"], function["parameters"]["required"]) == ("search", ["query"])


def search_at_once(search, queries):
    """One thread a query, all released together."""
    start = threading.Barrier(len(queries))

    def run(query):
        start.wait()
        return search.search(query)

    with ThreadPoolExecutor(len(queries)) as pool:
        return list(pool.map(run, queries))


@pytest.fixture
def gather(monkeypatch):
    """Has each batch wait, instead of for a moment, until so many queries have been asked."""

    def gather(number):
        asked, all_asked, ask = [], threading.Event(), Batcher._future

        def ask_and_count(batcher, query):
            future = ask(batcher, query)
            asked.append(query)
            if len(asked) == number:
                all_asked.set()
            return future

        clock = SimpleNamespace(sleep=lambda seconds: all_asked.wait(10), monotonic=time.monotonic)
        monkeypatch.setattr(Batcher, "_future", ask_and_count)
        monkeypatch.setattr("a2tgpo_trl.search.batching.time", clock)

    return gather


def test_concurrent_queries_share_requests(gather):
    gather(32)
    queries = [f"q{number}" for number in range(32)]
    with serving() as server:
        texts = search_at_once(HTTPSearch(server.url, top_k=1), queries)
        assert len(server.bodies) == 1
        assert sorted(server.bodies[0]["queries"]) == sorted(queries)
    assert texts == [f"(1) About {query}: Found for {query}." for query in queries]


def test_a_request_holds_no_more_than_a_batch(monkeypatch):
    monkeypatch.setattr("a2tgpo_trl.search.batching.GATHER_SECONDS", 0.2)
    queries = [f"q{number}" for number in range(32)]
    with serving() as server:
        assert len(HTTPSearch(server.url, max_batch=5).retrieve(queries)) == 32
        assert sorted(len(body["queries"]) for body in server.bodies) == [2, 5, 5, 5, 5, 5, 5]


def test_equal_queries_are_asked_once(gather):
    gather(16)
    with serving() as server:
        assert len(set(search_at_once(HTTPSearch(server.url, cache_size=0), ["Lyon"] * 16))) == 1
        assert [body["queries"] for body in server.bodies] == [["Lyon"]]


def test_batches_do_not_wait_for_each_other():
    stop = threading.Event()

    def respond(number, body):
        if body["queries"] == ["slow"]:
            stop.wait(10)
        return fine(body)

    with serving(respond) as server, ThreadPoolExecutor(1) as pool:
        search = HTTPSearch(server.url)
        slow = pool.submit(search.search, "slow")
        while not server.bodies and not slow.done():
            time.sleep(0.001)
        search.search("quick")
        assert not slow.done()
        stop.set()


def test_answers_are_kept_and_the_oldest_forgotten():
    with serving() as server:
        search = HTTPSearch(server.url, cache_size=2)
        for query in ["a", "b", "a", "c", "a", "b"]:  # b makes room for c, as a was used after it
            search.search(query)
        assert [body["queries"] for body in server.bodies] == [["a"], ["b"], ["c"], ["b"]]


def test_without_a_cache_everything_is_asked():
    with serving() as server:
        search = HTTPSearch(server.url, cache_size=0)
        assert search.search("a") == search.search("a")
        assert len(server.bodies) == 2


def test_what_a_caller_changes_is_its_own():
    with serving() as server:
        search = HTTPSearch(server.url)
        search.retrieve(["a"])[0][0]["text"] = "changed"
        assert search.retrieve(["a"])[0][0]["text"] == "Found for a."


def test_connections_stay_open():
    with serving() as server:
        search = HTTPSearch(server.url, cache_size=0)
        for number in range(20):
            search.search(f"q{number}")
        assert len(server.bodies) == 20
        assert len(server.connections) == 1


@pytest.mark.parametrize("failure", [(503, b"busy"), (429, b""), (500, b""), None])
def test_a_server_that_fails_twice_is_asked_three_times(failure):
    with serving(lambda number, body: fine(body) if number > 2 else failure) as server:
        assert HTTPSearch(server.url, retries=2).search("a") == "(1) About a: Found for a."
        assert len(server.bodies) == 3


def test_attempts_end_and_the_error_says_where_and_what():
    with serving(lambda number, body: (503, b"the index is loading")) as server:
        search = HTTPSearch(server.url, retries=2)
        with pytest.raises(ConnectionError, match=f"{server.url} answered 503 .*the index is loading"):
            search.search("a")
        assert len(server.bodies) == 3
        with pytest.raises(ConnectionError):
            search.search("a")
        assert len(server.bodies) == 6  # failures are not remembered


def test_pauses_grow_and_the_server_may_ask_for_longer_ones(monkeypatch):
    pauses = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr("a2tgpo_trl.search.http.time", clock)
    with serving(lambda number, body: (503, b"")) as server, pytest.raises(ConnectionError):
        HTTPSearch(server.url, retries=3).search("a")
    assert pauses == [0.01, 0.02, 0.04]
    with serving(lambda number, body: (429, b""), Retry_After=2) as server, pytest.raises(ConnectionError):
        HTTPSearch(server.url, retries=1).search("a")
    assert pauses[3:] == [2.0]
    with serving(lambda number, body: (429, b""), Retry_After=3600) as server, pytest.raises(ConnectionError):
        HTTPSearch(server.url, retries=1).search("a")
    assert pauses[4:] == []  # longer than the search may take


def test_an_answer_that_is_cut_off_is_asked_for_again():
    whole = json.dumps(fine({"queries": ["a"], "topk": 1})[1]).encode()
    headers = {"Content_Length": len(whole), "Connection": "close"}
    with serving(lambda number, body: (200, whole if number > 2 else whole[:20]), **headers) as server:
        assert HTTPSearch(server.url, top_k=1, retries=2).search("a") == "(1) About a: Found for a."
        assert len(server.bodies) == 3


def test_a_pause_that_cannot_be_read_is_the_usual_one():
    with serving(lambda number, body: fine(body) if number > 1 else (503, b""), Retry_After="soon") as server:
        assert HTTPSearch(server.url, retries=1).search("a") == "(1) About a: Found for a."


def test_no_attempt_begins_when_the_time_is_over():
    def respond(number, body):
        time.sleep(0.2)
        return 503, b"busy"

    with serving(respond) as server:
        with pytest.raises((ConnectionError, TimeoutError)):
            HTTPSearch(server.url, timeout=0.5, retries=9).search("a")
        time.sleep(0.5)
        assert len(server.bodies) <= 3


def test_a_server_that_is_not_there():
    with serving() as server:
        pass
    with pytest.raises(ConnectionError, match=rf"{server.url} cannot be reached: .*refused"):
        HTTPSearch(server.url, retries=1).search("a")


def test_a_search_takes_no_longer_than_it_may():
    stop = threading.Event()
    with serving(lambda number, body: stop.wait(5) and fine(body)) as server:
        begin = time.perf_counter()
        with pytest.raises(TimeoutError, match=rf"{server.url} gave no answer within 1 s"):
            HTTPSearch(server.url, timeout=1).search("a")
        assert time.perf_counter() - begin < 4
        stop.set()
        assert len(server.bodies) <= 1  # nothing is asked again that nobody waits for


def test_one_bad_query_fails_alone(gather):
    gather(3)

    def respond(number, body):
        return (422, b"bad") if "bad" in body["queries"] else fine(body)

    with serving(respond) as server, ThreadPoolExecutor(3) as pool:
        search = HTTPSearch(server.url)
        good, bad, other = (pool.submit(search.search, query) for query in ("a", "bad", "b"))
        assert (good.result(), other.result()) == ("(1) About a: Found for a.", "(1) About b: Found for b.")
        with pytest.raises(ConnectionError, match="answered 422"):
            bad.result()
        assert len(server.bodies) == 4


@pytest.mark.parametrize(
    "content",
    [b"<html>", {"results": []}, {"result": []}, {"result": [[{"document": {"title": "x"}}]]}, {"result": 7}, []],
)
def test_an_answer_of_another_protocol_is_shown(content):
    with (
        serving(lambda number, body: (200, content)) as server,
        pytest.raises(ConnectionError, match=r"does not answer as Search-R1's retriever does .* It sent: '"),
    ):
        HTTPSearch(server.url).search("a")


# ---- proxies


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that reaches nothing, as `http_proxy` names it."""
    for name in ("no_proxy", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving(lambda number, body: (502, b"no such host")) as server:
        address = f"127.0.0.1:{server.http.server_port}"
        monkeypatch.setenv("http_proxy", f"http://clerk:secret@{address}")
        monkeypatch.setenv("all_proxy", f"http://clerk:secret@{address}")
        yield SimpleNamespace(address=address, bodies=server.bodies)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0", "127.1"])
def test_this_machine_is_asked_without_a_proxy(proxy, host):
    with serving() as server:
        assert HTTPSearch(server.url.replace("127.0.0.1", host)).search("Lyon").startswith("(1) About Lyon")
    assert proxy.bodies == []


def test_this_machine_is_asked_without_a_proxy_where_it_redirects_to(proxy):
    with serving() as server, serving(lambda number, body: (307, b""), Location=server.url) as first:
        assert HTTPSearch(first.url).search("Lyon").startswith("(1) About Lyon")
    assert proxy.bodies == []


def test_other_machines_are_asked_through_the_proxy_which_errors_name(proxy, monkeypatch):
    search = HTTPSearch("http://retriever.example:8000/retrieve", retries=0)
    named = rf"asked through the proxy http://{proxy.address} \(no_proxy=retriever.example goes around it\)"
    with pytest.raises(ConnectionError, match=rf"{named}, answered 502 .*no such host") as failure:
        search.search("Lyon")
    assert len(proxy.bodies) == 1 and "secret" not in str(failure.value)
    monkeypatch.setenv("http_proxy", "http://clerk:secret@127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=r"proxy http://127.0.0.1:9 \(.*\), cannot be reached: Connection"
    ) as failure:
        search.search("Lyon")
    assert "secret" not in str(failure.value)
    monkeypatch.setenv("no_proxy", "retriever.example")
    with pytest.raises(ConnectionError, match=r"^The search server http://retriever.example:8000/retrieve cannot be"):
        search.search("Lyon")


@pytest.mark.parametrize("password", ["p@ss", "p/ss", "p/@ss", "p?ss", "p#ss"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_errors_show_no_part_of_a_password(proxy, monkeypatch, scheme, password):
    monkeypatch.setenv("http_proxy", f"{scheme}clerk:{password}@127.0.0.1:9")
    search = HTTPSearch("http://reader:word@retriever.example:8000/retrieve", retries=0)
    with pytest.raises(ConnectionError) as failure:
        search.search("Lyon")
    message = str(failure.value)
    server = "The search server http://retriever.example:8000/retrieve, asked through the proxy"
    assert message.startswith(f"{server} {scheme}127.0.0.1:9 (")
    assert not [part for part in ("clerk", "reader", "word@", ":p", "ss@") if part in message]


@pytest.mark.parametrize(
    "host",
    ["127.1.2.3", "127.1", "[::1]:8000", "[::ffff:127.0.0.1]", "[::]", "localhost.", "a.localhost", "a.localhost."],
)
def test_addresses_of_this_machine(proxy, host):
    assert _proxy(f"http://{host}/x") is None


@pytest.mark.parametrize("host", ["10.0.0.1", "10.1", "localhost.example", "[fe80::1]", "[::ffff:10.0.0.1]"])
def test_addresses_of_other_machines(proxy, host):
    assert _proxy(f"http://{host}/x") == f"http://{proxy.address}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url is '127.0.0.1:8000'"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"cache_size": -1}, "cache_size is -1"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HTTPSearch(**{"url": "http://127.0.0.1:1/retrieve", **options})


def test_without_requests_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ImportError, match=r"a2tgpo-trl\[search\]"):
        HTTPSearch("http://127.0.0.1:1/retrieve")


def test_a_search_under_way_does_not_hold_up_the_end(tmp_path):
    code = (
        "import os, sys, threading, time\n"
        "from a2tgpo_trl.search import HTTPSearch\n"
        "search = HTTPSearch(sys.argv[1], timeout=100)\n"
        "threading.Thread(target=search.search, args=('a',), daemon=True).start()\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    time.sleep(0.01)\n"
    )
    asked, stop = tmp_path / "asked", threading.Event()
    with serving(lambda number, body: asked.touch() or (stop.wait(100) and None)) as server:
        subprocess.run([sys.executable, "-c", code, server.url, str(asked)], check=True, timeout=60)
        assert len(server.bodies) == 1
        stop.set()


def _search_in_child(search, answers):
    answers.put(search.search("child"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX")
def test_a_forked_process_searches_too():
    with serving() as server:
        search = HTTPSearch(server.url)
        search._batcher._lock.acquire()  # as if another thread searched at the moment of the fork
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=_search_in_child, args=(search, answers), daemon=True)
        child.start()
        child.join(60)
        search._batcher._lock.release()
        assert child.exitcode == 0
        assert answers.get() == "(1) About child: Found for child."
