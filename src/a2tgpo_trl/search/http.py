"""Search on a server that speaks Search-R1's `POST /retrieve`."""

import ipaddress
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from .batching import Batcher
from .passages import as_passage
from .tool import PassageSearch

POOL_SIZE = 32
BACK_OFF_SECONDS = 0.2
"""Pause before the second attempt; it doubles with each further one."""
BUSY = {429, 500, 502, 503, 504}
"""Statuses that another attempt may change."""


class HTTPSearch(PassageSearch):
    """Search over HTTP, to be passed to a trainer as the tool `instance.search`.

    The server gets `{"queries": […], "topk": k, "return_scores": true}` and answers
    `{"result": [[{"document": {"contents": …}, "score": …}, …], …]}`, as the retrievers of Search-R1, verl and
    `a2tgpo retriever` do. Searches of many threads that come at the same time travel in one request, equal ones once,
    over connections that stay open. Where the server is out of reach or busy, a request is tried again after a pause.
    A batch that the server refuses is sent again query by query, so that a bad query fails alone.

    A server on this machine is asked directly; to others requests go through the proxy of `http_proxy` and `https_proxy`,
    unless `no_proxy` names them.

    One instance may serve many threads. A forked process starts with connections of its own.

    Args:
        url (`str`):
            The whole address, such as `"http://127.0.0.1:8000/retrieve"`.
        top_k (`int`, *optional*, defaults to `3`):
            Number of passages to ask for.
        timeout (`float`, *optional*, defaults to `20.0`):
            Seconds that a search may take, pauses and further attempts included. A trainer's `tool_timeout` should be
            longer, or its message is what the model reads.
        retries (`int`, *optional*, defaults to `3`):
            Further attempts after the first one failed.
        max_batch (`int`, *optional*, defaults to `64`):
            Greatest number of queries in a request.
        cache_size (`int`, *optional*, defaults to `10000`):
            Queries whose passages are kept, those longest unused forgotten first; 0 keeps none.
        show_titles (`bool`, *optional*, defaults to `True`):
            How [`~HTTPSearch.search`] renders what it found: numbered lines `(1) title: text`, or with `False` the bare
            texts, one a line.
        max_words (`int`, *optional*):
            Words of a text that [`~HTTPSearch.search`] shows; a longer text is cut there and ends with `…`. By default
            texts are whole.
        deduplicate (`bool`, *optional*, defaults to `True`):
            Whether [`~HTTPSearch.search`] leaves out a passage that would look like a better one.

    Raises:
        `ImportError`: requests is not installed.
        `ValueError`: an option is out of range.
    """

    def __init__(
        self,
        url: str,
        top_k: int = 3,
        timeout: float = 20.0,
        retries: int = 3,
        max_batch: int = 64,
        cache_size: int = 10_000,
        show_titles: bool = True,
        max_words: int | None = None,
        deduplicate: bool = True,
    ):
        super().__init__(top_k, show_titles, max_words, deduplicate)
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; give the whole address, such as 'http://127.0.0.1:8000/retrieve'.")
        lowest = {"timeout": 0.001, "retries": 0, "max_batch": 1, "cache_size": 0}
        given = {"timeout": timeout, "retries": retries, "max_batch": max_batch, "cache_size": cache_size}
        for option, least in lowest.items():
            if given[option] < least:
                raise ValueError(f"{option} is {given[option]}; give {least} or more.")
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self.max_batch = max_batch
        self.cache_size = cache_size
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._session = _new_session()
        self._batcher: Batcher[list[dict]] = Batcher(self._answer, self.max_batch, self.cache_size)

    def retrieve(self, queries: Sequence[str]) -> list[list[dict]]:
        """Ask the server for the passages for several queries.

        Args:
            queries (`Sequence[str]`):
                What to look for.

        Returns:
            `list[list[dict]]`: for each query the passages as the server ranks them, with what it sent of each, and
            `"title"`, `"text"` and `"score"`, the latter `None` if the server gave none.

        Raises:
            `ConnectionError`: the server is out of reach, or answers with an error or something else than passages.
            `TimeoutError`: `timeout` is over.
        """
        if os.getpid() != self._process:
            self._start()
        try:
            found = self._batcher.ask(queries, self.timeout)
        except TimeoutError:
            raise TimeoutError(f"{self._server()} gave no answer within {self.timeout:g} s.") from None
        return [[dict(passage) for passage in passages] for passages in found]

    def _server(self) -> str:
        """How an error names the server, and the proxy on the way to it."""
        proxy = _proxy(self.url)
        way = (
            f", asked through the proxy {proxy} (no_proxy={urlsplit(self.url).hostname} goes around it),"
            if proxy
            else ""
        )
        return f"The search server {_without_login(self.url)}{way}"

    def _answer(self, queries: list[str]) -> list[list[dict] | Exception]:
        response = self._send(queries)
        if response.ok:
            return self._read(response, len(queries))
        if len(queries) == 1 or response.status_code in BUSY:
            raise ConnectionError(f"{self._server()} answered {_status(response)}")
        return [self._outcome(query) for query in queries]

    def _outcome(self, query: str) -> list[dict] | Exception:
        try:
            return self._answer([query])[0]
        except Exception as error:
            return error

    def _send(self, queries: list[str]):
        """The server's answer, whatever its status; at `timeout` and after the last attempt the one there is."""
        import requests

        body = {"queries": queries, "topk": self.top_k, "return_scores": True}
        deadline = time.monotonic() + self.timeout
        # Not urllib3's Retry: it has no deadline, and does not cover the body of an answer
        for attempt in range(self.retries + 1):
            response, pause = None, BACK_OFF_SECONDS * 2**attempt
            try:
                response = self._session.post(self.url, json=body, timeout=max(deadline - time.monotonic(), 0.001))
                if response.status_code not in BUSY:
                    return response
                pause = max(pause, _seconds_to_wait(response))
            except requests.Timeout as error:
                raise TimeoutError from error
            except requests.RequestException as error:
                failure = ConnectionError(f"{self._server()} cannot be reached: {_reason(error)}")
            if attempt == self.retries or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        if response is None:
            raise failure
        return response

    def _read(self, response, num_queries: int) -> list[list[dict]]:
        try:
            result = response.json()["result"]
            if len(result) != num_queries:
                raise ValueError(f"{len(result)} results for {num_queries} queries")
            return [[_passage(item) for item in items] for items in result]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConnectionError(
                f"{self._server()} does not answer as Search-R1's retriever does "
                f"({type(error).__name__}: {error}). It sent: {response.text[:200]!r}"
            ) from error


def _passage(item: dict) -> dict:
    """A passage from an item of the result, which is the document itself where a server gives no scores."""
    return {**as_passage(item.get("document", item), "a document of the result"), "score": item.get("score")}


def _status(response) -> str:
    return f"{response.status_code} {response.reason}: {response.text[:200]!r}"


def _seconds_to_wait(response) -> float:
    """What the server asks for, if it does so in seconds."""
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    """The innermost cause; what requests wraps it in names objects and addresses of memory."""
    from requests.exceptions import InvalidURL

    if isinstance(error, InvalidURL):  # whose cause may show a part of a password
        return "its address, or the proxy's, cannot be read; in a password write @ as %40 and / as %2F."
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {error}"


def _is_loopback(url: str) -> bool:
    """Whether an address is of this machine, which no proxy can reach."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    with suppress(OSError):
        host = socket.inet_ntoa(socket.inet_aton(host))  # 127.1 and other short forms
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _proxy(url: str) -> str | None:
    """The proxy that requests to an address go through, without the name and password in it."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = None if _is_loopback(url) else select_proxy(url, get_environ_proxies(url))
    return proxy and _without_login(proxy)


def _without_login(address: str) -> str:
    """An address without the name and password in it, whatever characters they hold."""
    return re.sub(r"^(\w+://)?.*@", r"\1", address)


def _new_session():
    try:
        import requests
    except ImportError as error:
        raise ImportError("HTTPSearch needs requests: pip install 'a2tgpo-trl[search]'.") from error

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, request, *args, proxies=None, **kwargs):
            return super().send(request, *args, proxies=None if _is_loopback(request.url) else proxies, **kwargs)

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_connections=1, pool_maxsize=POOL_SIZE))
    return session
