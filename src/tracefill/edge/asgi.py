"""The edge of an ASGI application: request ids in and out, whoever makes the server span."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry.context import Context

from tracefill import tags
from tracefill._codec import find_header
from tracefill.context import extract
from tracefill.context import scope as context_scope
from tracefill.edge import makers, root_ids
from tracefill.edge.adoption import is_adopted
from tracefill.edge.announcements import listen
from tracefill.edge.arrivals import KEY, Arrival, caller, further_in

__all__ = [
    "REQUESTS",
    "ASGIApplication",
    "Edge",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "as_pairs",
    "tasks_wait",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The scopes that are requests; the others (lifespan) are none.
REQUESTS = ("http", "websocket")

_ANSWERS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class Edge:
    """The application, behind a gateway: request ids are kept, put on record, passed on and sent back.

    `spanned`, the application with a server span around it, is called where nobody within `app` makes one. `reached` is False
    where a program may have called the application by itself, and not a server. `others` are looked for where they are not
    given.
    """

    def __init__(
        self,
        app: ASGIApplication,
        spanned: ASGIApplication | None = None,
        *,
        reached: bool = True,
        others: tuple[makers.Maker, ...] | None = None,
    ) -> None:
        self.app = app
        self.spanned = spanned or app
        self._reached = reached
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        base, served = (None, False) if self._reached else caller()
        if self._others is None:
            self._others = makers.others(self.app)
        others = any(makes_span() for makes_span in self._others) and not self._shuns(scope)
        # Within an open span, others make none of their own for a server.
        if scope["type"] not in REQUESTS or KEY in scope or served or (others and base is not None):
            await self.app(scope, receive, send)
            return
        scope, arrival = self._meet(scope, base, others)
        if scope["type"] == "websocket":
            receive, send = listen(scope, receive, send)
        try:
            with context_scope(arrival.for_others(is_adopted()) if others else arrival.context):
                app = self.app if others else self.spanned
                await app(arrival.within(scope), receive, _answering(send, arrival))
                if arrival.adopted is not None and tasks_wait():
                    await asyncio.sleep(0)
        finally:
            if others:
                root_ids.forget()
            arrival.over()

    def _shuns(self, asgi_scope: Scope) -> bool:
        shuns = getattr(self.spanned, "shuns", None)
        return shuns is not None and bool(shuns(asgi_scope))

    def _meet(self, asgi_scope: Scope, base: Context | None, others: bool) -> tuple[Scope, Arrival]:
        """Who the request is, and the scope that the application is to see."""
        headers = asgi_scope.get("headers", ())
        arrival = further_in(extract(asgi_scope, base), find_header(headers, b"x-request-id"))
        if tags.declared():
            arrival.bring_tags(headers, asgi_scope.get("path", ""))
        if others and find_header(headers, b"traceparent") is None:
            written = as_pairs(arrival.written())
            if written:
                asgi_scope = {**asgi_scope, "headers": [*headers, *written]}
        return asgi_scope, arrival


def as_pairs(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """HTTP headers as ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def tasks_wait() -> bool:
    """True when tasks that a request has started may not have begun: its span ends after one turn of the loop, so that no
    child is younger than the end of its parent."""
    loop = asyncio._get_running_loop()
    return loop is not None and bool(getattr(loop, "_ready", True))  # asyncio's own loop tells


def _answering(send: Send, arrival: Arrival) -> Send:
    def answering(message: Message) -> Awaitable[None]:
        if message["type"] in _ANSWERS:
            headers = list(message.get("headers", ()))
            present = {bytes(name).lower() for name, _ in headers}
            headers += [line for line in as_pairs(arrival.answers()) if line[0] not in present]
            message = {**message, "headers": headers}
        return send(message)

    return answering
