"""`a2tgpo retriever`: a corpus behind a port."""

import argparse
from pathlib import Path

from .main import BadUsage, as_bad_usage

DESCRIPTION = "Serve a corpus in Search-R1's protocol, POST /retrieve. The index is built once and reused."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise BadUsage(f"{message} ({self.prog} --help lists the options)")


def run(options: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit status."""
    parser = _Parser(prog="a2tgpo retriever", description=DESCRIPTION)
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL with id and contents, or title and text")
    parser.add_argument("--index", type=Path, help="folder of the index (default: beside the corpus)")
    parser.add_argument("--kind", choices=["bm25", "dense"], default="bm25", help="kind of index")
    parser.add_argument("--encoder", help="sentence-transformers model of a dense index: a name or a folder")
    parser.add_argument("--query_prefix", default="", help="put before each query, where the encoder wants it")
    parser.add_argument("--passage_prefix", default="", help="put before each passage, likewise")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--top_k", type=int, default=3, help="passages for a query that does not say")
    arguments = parser.parse_args(options)
    from ..search.retriever import run_retriever

    with as_bad_usage():
        run_retriever(**vars(arguments))
    return 0
