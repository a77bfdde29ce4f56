"""A retriever: any of our indexes behind Search-R1's `POST /retrieve`."""

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Annotated, Protocol

from .bounds import BoundedBody, Limits, protocol_in_time
from .passages import contents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from uvicorn import Config

KEEP_ALIVE_SECONDS = 75
"""How long an unused connection stays open: longer than a turn takes to generate."""
MISTAKES = 3
"""The most mistakes of a request that an error names."""


class Retriever(Protocol):
    """What can be served: [`BM25Search`], [`DenseSearch`]."""

    top_k: int

    def retrieve(self, queries: "Sequence[str]", top_k: int | None = None) -> list[list[dict]]: ...


def make_app(retriever: Retriever, limits: Limits | None = None) -> "FastAPI":
    """Make the web application.

    `POST /retrieve` takes `{"queries": [text, …], "topk": k, "return_scores": false}`, of which only `queries` must be
    there; without `topk` it is the retriever's `top_k`. It answers `{"result": [[document, …], …]}`, with scores
    `{"result": [[{"document": document, "score": s}, …], …]}`, one list for each query. A document has `"contents"`, the
    title in quotes above the text, and the `"id"` of the corpus where that has one. `GET /health` answers
    `{"status": "ok"}`. Requests are answered on threads, several at once.

    Args:
        retriever (`Retriever`):
            What is served.
        limits (`Limits`, *optional*):
            Bounds on requests; their defaults by default.

    Returns:
        `FastAPI`: the application. A request that is not as described is answered with status 422 and a sentence that
            names the first mistakes, one of too many bytes with status 413.

    Raises:
        `ImportError`: fastapi is not installed.
    """
    fastapi, _ = import_fastapi_and_uvicorn()
    from pydantic import AfterValidator, BaseModel, FailFast, Field
    from pydantic_core import PydanticCustomError

    limits = limits or Limits()

    def bounded(query: str) -> str:  # pydantic's own bound refuses half a character
        if len(query) > limits.max_query_length:
            length = {"length": limits.max_query_length}
            raise PydanticCustomError("string_too_long", "String should have at most {length} characters", length)
        return query

    Query = Annotated[str, AfterValidator(bounded)]

    class Request(BaseModel):
        queries: Annotated[list[Query], Field(max_length=limits.max_queries), FailFast()]
        topk: int | None = Field(None, ge=0, le=limits.max_topk)
        return_scores: bool = False

    app = fastapi.FastAPI(title="a2tgpo retriever")
    app.add_middleware(BoundedBody, max_bytes=int(limits.max_body_mb * 2**20))

    @app.post("/retrieve")
    def retrieve(request: Request):
        found = retriever.retrieve(request.queries, request.topk or retriever.top_k)
        write = _with_score if request.return_scores else _document
        result = [[write(passage) for passage in passages] for passages in found]
        return fastapi.Response(json.dumps({"result": result}), media_type="application/json")

    @app.get("/health")
    async def health():  # beside the threads, which may all be searching
        return {"status": "ok"}

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    def explain(request, error):
        first = error.errors()[:MISTAKES]
        mistakes = "; ".join(f"{_place(mistake['loc'])}: {mistake['msg']}" for mistake in first)
        expected = 'POST {"queries": [text, …], "topk": number, "return_scores": true or false}.'
        return fastapi.responses.JSONResponse({"detail": f"{mistakes}. {expected}"}, status_code=422)

    return app


def bind(host: str, port: int) -> socket.socket:
    """Take an address to serve at. Connections are refused until [`listen`].

    Args:
        host (`str`):
            Address, or a name of it; `"0.0.0.0"` is for other machines too.
        port (`int`):
            Port; 0 takes a free one.

    Returns:
        `socket.socket`: to be closed by the caller.

    Raises:
        `ValueError`: there is no such address or port, or it is taken.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; give one up to 65535, or 0 for a free one.")
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server that starts again needs
        listener.bind(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # or another may share it until one listens
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ValueError(
            f"host {host!r} and port {port} cannot be served at ({error.strerror}); give others."
        ) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Accept connections on what [`bind`] returned; they wait until [`serve`] answers them."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or closed connections would hold the port back
    listener.listen(socket.SOMAXCONN)


def serve(app: "FastAPI", listener: socket.socket, limits: Limits | None = None) -> None:
    """Answer requests until the process is told to stop, with SIGINT or SIGTERM. There is no authentication.

    Args:
        app (`FastAPI`):
            What [`make_app`] made.
        listener (`socket.socket`):
            What [`bind`] returned.
        limits (`Limits`, *optional*):
            Of which `request_timeout` is kept here.
    """
    _, uvicorn = import_fastapi_and_uvicorn()
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(configure(app, limits)).run([listener])


def configure(app: "FastAPI", limits: Limits | None = None, log_level: str = "info") -> "Config":
    """How uvicorn serves an application of [`make_app`]."""
    _, uvicorn = import_fastapi_and_uvicorn()
    return uvicorn.Config(
        app,
        http=protocol_in_time((limits or Limits()).request_timeout),
        ws="none",
        log_level=log_level,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def _document(passage: dict) -> dict:
    return {**({"id": passage["id"]} if "id" in passage else {}), "contents": contents_of(passage)}


def _with_score(passage: dict) -> dict:
    return {"document": _document(passage), "score": passage["score"]}


def _place(path: tuple) -> str:
    return ".".join(map(str, path))


def import_fastapi_and_uvicorn():
    """The two libraries, or an error that says how to install them."""
    try:
        import fastapi
        import fastapi.exceptions
        import fastapi.responses
        import uvicorn
    except ImportError as error:
        raise ImportError("The retriever needs fastapi and uvicorn: pip install 'a2tgpo-trl[retriever]'.") from error
    return fastapi, uvicorn
