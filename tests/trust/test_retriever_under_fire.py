"""A retriever that is sent 1,000 hostile requests: it refuses them, answers the others, and gathers nothing."""

import http.client
import json
import os
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search
from a2tgpo_trl.search.bounds import Limits
from a2tgpo_trl.search.server import make_app
from serving import serving

REQUESTS, SENDERS = 1000, 16
SERVER_THREADS = 40 + 2
"""What Starlette answers requests on at most, and the server's own."""
LIMITS = Limits(max_queries=64, max_query_length=2000, max_body_mb=0.25, request_timeout=1.0)
GOOD = json.dumps({"queries": ["capital of France"], "topk": 1}).encode()


def post(body, head=b"", length=None):
    length = len(body) if length is None else length
    return (
        b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        + head
        + f"Content-Length: {length}\r\n\r\n".encode()
        + body
    )


def hostile(rng):
    """One request, as bytes."""
    word = "".join(rng.choices("abc{}[]\"'\\\x00\u202eé", k=rng.randint(0, 40)))
    bodies = [
        b"", b"null", b"[" * 50_000, b'{"queries":' * 5000, rng.randbytes(200), b"\xff\xfe" * 500,
        json.dumps({"queries": [word] * 65}).encode(), json.dumps({"queries": ["x" * 2001]}).encode(),
        json.dumps({"queries": [word], "topk": 10**30}).encode(), json.dumps({"queries": [word], "topk": -1}).encode(),
        json.dumps({"queries": {"$ne": word}}).encode(), json.dumps({"queries": [[[[word]]]]}).encode(),
        json.dumps({"queries": ["../../etc/passwd", "'; DROP TABLE passages; --", "{{7*7}}"], "extra": word}).encode(),
        b'{"queries": ["' + b"\\ud800" * 100 + b'"]}', b"x" * 300_000, b'{"queries": [1e999, NaN]}',
    ]  # fmt: skip
    body = rng.choice(bodies)
    return rng.choice(
        [
            post(body),
            post(body),
            post(body),
            post(body, length=len(body) + 100),  # the rest never comes
            post(body, b"X-A: " + b"a" * rng.choice([10, 70_000]) + b"\r\n"),
            post(body, b"Transfer-Encoding: chunked\r\n"),
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"DELETE /retrieve HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"\x16\x03\x01" + rng.randbytes(100),
            rng.randbytes(300) + b"\r\n\r\n",
        ]
    )


def send(port, data):
    """The status of the answer; 0 if the connection was closed without one."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(data)
            answer = connection.recv(4096)
    except (ConnectionError, TimeoutError) as error:
        return 0 if isinstance(error, ConnectionError) else -1
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/health")
    return json.loads(connection.getresponse().read())


def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_hostile_requests(record_property):
    rng, statuses, threads = random.Random(0), Counter(), threading.active_count()
    with serving(make_app(BM25Search(load_atlas().passages, top_k=2), LIMITS), LIMITS) as port:
        requests = [hostile(rng) for _ in range(REQUESTS)]
        with ThreadPoolExecutor(SENDERS) as pool:
            statuses.update(pool.map(lambda data: send(port, data), requests[:200]))
            before, files = memory(), len(os.listdir("/proc/self/fd"))
            statuses.update(pool.map(lambda data: send(port, data), requests[200:]))
            assert health(port) == {"status": "ok"} and send(port, post(GOOD)) == 200
            grown = memory() - before
            assert len(os.listdir("/proc/self/fd")) <= files + 4
            assert threading.active_count() <= threads + SENDERS + SERVER_THREADS
    record_property("statuses", dict(statuses))
    record_property("bytes_grown", grown)
    assert statuses.total() == REQUESTS
    assert {*statuses} <= {
        0,
        200,
        400,
        404,
        405,
        408,
        413,
        422,
        431,
    }  # never 500, and none is left without an end (-1)
    assert statuses[422] > 100 and statuses[413] > 10
    assert grown < 64 * 2**20
