"""A corpus behind a port: its index built if need be, opened, and served."""

from pathlib import Path
from typing import Literal

from .bm25 import BM25Search
from .bounds import Limits
from .dense import DenseSearch
from .folder import open_index
from .server import bind, import_fastapi_and_uvicorn, listen, make_app, serve


def run_retriever(
    corpus: str | Path,
    index: str | Path | None = None,
    kind: Literal["bm25", "dense"] = "bm25",
    host: str = "127.0.0.1",
    port: int = 8000,
    top_k: int = 3,
    encoder: str | None = None,
    query_prefix: str = "",
    passage_prefix: str = "",
    limits: Limits | None = None,
) -> None:
    """Serve a corpus until the process is told to stop.

    Args:
        corpus (`str | Path`):
            JSON of one passage a line. It need not be there if the index is.
        index (`str | Path`, *optional*):
            Folder of the index, which is built if it is not there. Default: beside the corpus, its name with the kind
            appended.
        kind (`str`, *optional*, defaults to `"bm25"`):
            Kind of index, or `"dense"`.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on; `"0.0.0.0"` serves other machines too. There is no authentication.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on; 0 takes a free one. It is taken before anything is built.
        top_k (`int`, *optional*, defaults to `3`):
            Passages for a query where the request does not say.
        encoder (`str`, *optional*):
            Name or folder of a sentence-transformers model, for a dense index.
        query_prefix (`str`, *optional*, defaults to `""`):
            Put before each query, for a dense index whose encoder wants it.
        passage_prefix (`str`, *optional*, defaults to `""`):
            Put before each passage, likewise.
        limits (`Limits`, *optional*):
            Bounds on requests. Default: 1,024 queries of 10,000 characters, 100 passages for each, 4 MB, 10 seconds to
            arrive.

    Raises:
        `FileNotFoundError`: there is neither index nor corpus.
        `ImportError`: a library is not installed; the error names the extra.
        `ValueError`: an option is wrong, the address is taken, the corpus has a bad line, or the index there is one of
            something else.
    """
    limits = limits or Limits()
    if top_k > limits.max_topk:
        raise ValueError(f"top_k is {top_k}, above max_topk={limits.max_topk}; set max_topk as high.")
    import_fastapi_and_uvicorn()  # before an index is built that cannot be served
    with bind(host, port) as listener:
        retriever = open_or_build(Path(corpus), index, kind, top_k, encoder, query_prefix, passage_prefix)
        listen(listener)
        print(f"{len(retriever.passages)} passages at http://{host}:{listener.getsockname()[1]}/retrieve", flush=True)
        serve(make_app(retriever, limits), listener, limits)


def open_or_build(
    corpus: Path,
    index: str | Path | None = None,
    kind: Literal["bm25", "dense"] = "bm25",
    top_k: int = 3,
    encoder: str | None = None,
    query_prefix: str = "",
    passage_prefix: str = "",
) -> BM25Search | DenseSearch:
    """Open the index of a corpus, after building it if it is not there; arguments and errors as above."""
    if kind not in ("bm25", "dense"):
        raise ValueError(f"kind is {kind!r}; give 'bm25' or 'dense'.")
    if kind == "dense" and encoder is None:
        raise ValueError("kind='dense' needs an encoder: give the name or folder of a sentence-transformers model.")
    if kind == "bm25" and (encoder or query_prefix or passage_prefix):
        raise ValueError("encoder, query_prefix and passage_prefix are for kind='dense'; leave them out.")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; give 1 or more.")
    folder = Path(index or f"{corpus}.{kind}")
    if kind == "bm25":
        search, model = BM25Search, {}
    else:
        search = DenseSearch
        model = {"encoder": encoder, "query_prefix": query_prefix, "passage_prefix": passage_prefix}
    if folder.exists():
        origin = {"corpus_bytes": corpus.stat().st_size} if corpus.exists() else {}
        _check_origin(folder, kind, {**origin, **model})
    elif not corpus.is_file():
        raise FileNotFoundError(f"corpus is {str(corpus)!r}: there is no such file, nor an index of it, {folder}.")
    else:
        print(f"Building the index {folder} of {corpus}.", flush=True)
        search.build(corpus, folder, **model)
    return search.load(folder, top_k=top_k)


def _check_origin(folder: Path, kind: str, wanted: dict) -> None:
    """An index is used as it is; one of another corpus or encoder would answer without a sign of it."""
    built = open_index(folder, kind)
    for key, value in wanted.items():
        if built[key] != value:
            raise ValueError(
                f"{folder} was built with {key}={built[key]!r}, not {value!r}. Delete it to build it again, or name "
                "another folder with index."
            )
