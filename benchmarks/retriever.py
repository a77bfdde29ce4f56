"""
Claim: one retriever process serves BM25 over 1,000,000 passages to 32 concurrent clients on this machine's few cores.

Writes a corpus of passages of eight random facts of the embedded atlas each, with a title and a number of their own, builds its
index in a process of its own, starts the retriever on loopback, and asks it for a bounded time in two ways: 32 clients with a
connection each that send one query a request, and 32 threads that share one HTTPSearch, which puts their queries together. Queries
are the atlas's questions and the titles of the passages that answer them, drawn at random; nothing is cached. The clients
run on the same cores as the server. Memory of the server: its own, and pages of the index that it shares with other processes.
    python benchmarks/retriever.py

Writes the figures as JSON beside itself.
"""

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests

from a2tgpo_trl.data import load_atlas
from a2tgpo_trl.search import BM25Search, HTTPSearch

FACTS = 8
LIBRARIES = ("a2tgpo-trl", "bm25s", "numpy", "fastapi", "uvicorn", "requests")


def write_corpus(file: Path, num_passages: int) -> None:
    """Passages in Search-R1's layout; no two are equal."""
    draw, facts = random.Random(0), load_atlas().passages
    with open(file, "w", encoding="utf-8") as lines:
        for number in range(num_passages):
            chosen = draw.sample(facts, FACTS)
            text = " ".join(fact["text"] for fact in chosen)
            contents = f'"{chosen[0]["title"]} {number}"\nEntry {number}. {text}'
            lines.write(json.dumps({"id": str(number), "contents": contents}, ensure_ascii=False) + "\n")


def draw_queries(seed: int) -> Iterator[str]:
    questions, draw = load_atlas().questions, random.Random(seed)
    while True:
        question = draw.choice(questions)
        yield draw.choice([question["question"], *question["supports"]])


def build(corpus: Path, index: Path) -> dict:
    start = time.perf_counter()
    BM25Search.build(corpus, index)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    size = sum(file.stat().st_size for file in index.iterdir()) / 2**20
    return {"build_seconds": round(seconds, 1), "build_peak_mib": round(peak), "index_mib": round(size)}


def alone(index: Path, num_queries: int = 300) -> dict:
    """The search itself, without a server: one thread in a process of its own."""
    start = time.perf_counter()
    search = BM25Search.load(index)
    loaded = time.perf_counter() - start
    times = []
    for query in itertools.islice(draw_queries(0), num_queries):
        start = time.perf_counter()
        search.retrieve([query])
        times.append(time.perf_counter() - start)
    return {"load_seconds": round(loaded, 2), **percentiles(times)}


@contextmanager
def retriever(corpus: Path, index: Path) -> Iterator[tuple[str, int, float]]:
    """Address, process and seconds until the first answer of a retriever that finds its index built."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = {"corpus": str(corpus), "index": str(index), "port": port}
    code = f"from a2tgpo_trl.search.retriever import run_retriever; run_retriever(**{options!r})"
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            url = f"http://127.0.0.1:{port}/retrieve"
            while not answers(url):
                if process.poll() is not None or time.perf_counter() - start > 120:
                    raise RuntimeError(f"the retriever does not answer, and ended with {process.poll()}")
                time.sleep(0.02)
            yield url, process.pid, time.perf_counter() - start
        finally:
            process.terminate()


def new_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # the server is on this machine, where no proxy reaches it
    return session


def answers(url: str) -> bool:
    try:
        return new_session().post(url, json={"queries": ["Lyon"]}, timeout=60).ok
    except requests.ConnectionError:
        return False


def one_query_a_request(url: str) -> Callable[[str], None]:
    session = new_session()

    def ask(query: str) -> None:
        body = {"queries": [query], "topk": 3, "return_scores": True}
        response = session.post(url, json=body, timeout=60)
        response.raise_for_status()
        assert len(response.json()["result"][0]) == 3

    return ask


def shared(url: str, num_clients: int) -> list[Callable[[str], None]]:
    search = HTTPSearch(url, timeout=60, cache_size=0)

    def ask(query: str) -> None:
        assert len(search.retrieve([query])[0]) == 3

    return [ask] * num_clients


def load(clients: list[Callable[[str], None]], seconds: float) -> dict:
    """Each client asks one query after the other until the time is over."""
    times: list[list[float]] = [[] for _ in clients]
    failures = []
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        try:
            for query in draw_queries(number):
                start = time.perf_counter()
                if start >= end:
                    return
                clients[number](query)
                times[number].append(time.perf_counter() - start)
        except Exception as error:
            failures.append(error)

    start = time.perf_counter()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    took = time.perf_counter() - start
    total = sum(map(len, times))
    return {
        "queries": total,
        "queries_per_second": round(total / took, 1),
        **percentiles(list(itertools.chain(*times))),
    }


def percentiles(times: list[float]) -> dict:
    p50, p95, worst = (float(np.quantile(times, share)) * 1000 for share in (0.5, 0.95, 1.0))
    return {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "max_ms": round(worst, 1)}


def memory(pid: int) -> dict:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, mapped = (round(int(fields[name].split()[0]) / 1024) for name in ("RssAnon", "RssFile"))
    return {"own_mib": own, "mapped_files_mib": mapped}


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version()}


def in_a_process_of_its_own(run: Callable[..., dict], *arguments: Path) -> dict:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(run, *arguments).result()
    print(run.__name__, result, flush=True)
    return result


def measure(folder: Path, options: argparse.Namespace) -> dict:
    corpus, index = folder / "atlas.jsonl", folder / "index"
    write_corpus(corpus, options.passages)
    figures = {"corpus_mib": round(corpus.stat().st_size / 2**20)}
    figures |= in_a_process_of_its_own(build, corpus, index)
    figures["one_thread_without_server"] = in_a_process_of_its_own(alone, index)
    with retriever(corpus, index) as (url, pid, seconds):
        figures |= {"start_seconds": round(seconds, 2), "memory_after_start": memory(pid)}
        ways = {
            "one_query_a_request": [one_query_a_request(url) for _ in range(options.clients)],
            "shared_http_search": shared(url, options.clients),
        }
        for name, clients in ways.items():
            figures[name] = load(clients, options.seconds)
            print(name, figures[name], flush=True)
        figures["memory_after_load"] = memory(pid)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30, help="of each of the two loads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options)
    report = {
        "claim": __doc__.strip().splitlines()[0],
        "options": vars(options),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "machine": machine(),
        **figures,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
