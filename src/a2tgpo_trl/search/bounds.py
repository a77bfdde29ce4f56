"""Limits on the requests that a retriever answers."""

import json
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Limits:
    """Limits on the requests that a retriever answers; `a2tgpo retriever` has options of the same names."""

    max_queries: int = field(default=1024, metadata={"help": "Queries of a request."})
    max_query_length: int = field(default=10_000, metadata={"help": "Characters of a query."})
    max_topk: int = field(default=100, metadata={"help": "Passages that a request may ask for, for each query."})
    max_body_mb: float = field(default=4.0, metadata={"help": "Megabytes (of 2**20 bytes) of a request."})
    request_timeout: float = field(
        default=10.0,
        metadata={"help": "Seconds within which a request must arrive; then its connection is closed."},
    )

    def __post_init__(self):
        for option in fields(Limits):
            if getattr(self, option.name) <= 0:
                raise ValueError(f"{option.name} is {getattr(self, option.name)}; give a number above 0.")


class BoundedBody:
    """An ASGI application that passes on complete requests, and refuses those of more bytes with status 413.

    A request that is too long is still read to its end, since many clients read no answer before they have sent everything.

    Args:
        app:
            The application behind it.
        max_bytes (`int`):
            The most that a body may have.
    """

    def __init__(self, app, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: dict[str, Any], receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            await _refuse(send, f"A request may have {self.max_bytes} bytes (the retriever's option max_body_mb).")
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return next(messages, None) or await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive) -> bytes | None:
        """The body; `None` if it is too long."""
        body, size, is_complete = bytearray(), 0, False
        while not is_complete:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size <= self.max_bytes:
                body += part
            is_complete = not message.get("more_body", False)  # nor has the message of a client that disconnected
        return bytes(body) if size <= self.max_bytes else None


async def _refuse(send, why: str) -> None:
    content = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def protocol_in_time(seconds: float) -> type:
    """uvicorn's HTTP protocol that closes connections whose request does not arrive in time; uvicorn itself waits forever.

    Args:
        seconds (`float`):
            From the opening of a connection, or the first byte of a further request, to the last byte of the request.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class InTime(H11Protocol):
        _timer = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._watch()

        def data_received(self, data):
            super().data_received(data)
            self._watch()

        def on_response_complete(self):
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc):
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the timer before the first request, and while a request has arrived in part."""
            is_first, has_begun = self.cycle is None, bool(self.conn.trailing_data[0])
            is_awaited = self.conn.their_state is h11.IDLE and (is_first or has_begun)
            if is_awaited or self.conn.their_state is h11.SEND_BODY:
                self._timer = self._timer or self.loop.call_later(seconds, self._close)
            else:
                self._stop()

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # nothing of an answer was sent
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()

    return InTime
