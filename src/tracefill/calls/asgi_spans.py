"""The server spans of ASGI applications: what every ASGI server and framework shares."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from opentelemetry.trace import Span

from tracefill import tags
from tracefill._codec import Scope as ContextScope
from tracefill._codec import enter_scope, find_header
from tracefill.calls.http_spans import (
    SHOWN_CHARACTERS,
    call_hook,
    header_capture,
    method_attributes,
    record_failure,
    record_server_status,
    redacted_query,
    server_address,
    span_name,
)
from tracefill.calls.http_spans import excluded_urls as url_test
from tracefill.context import current, extract
from tracefill.edge import makers
from tracefill.edge.arrivals import KEY, Arrival, caller
from tracefill.edge.asgi import REQUESTS, ASGIApplication, Edge, Message, Receive, Scope, Send, tasks_wait
from tracefill.edge.entrances import Serving
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer

__all__ = ["Middleware", "entering", "failed", "routed", "serving"]

_tracer = Tracer("tracefill.calls.asgi")

RequestHook = Callable[[Span, Scope], object]
ResponseHook = Callable[[Span, Scope, Message], object]


class Middleware:
    """The application with a server span around each HTTP request and each websocket connection.

    Where contrib's middleware or instrumentation is within, the span is contrib's, and this does nothing.
    `excluded_urls`: patterns of URLs without a span. `request_hook(span, scope)` is called when the span has begun,
    `response_hook(span, scope, message)` when the response has. `request_headers`, `response_headers`: names of headers to
    record; `secret_headers`: names of those whose values are not to be seen. All but the hooks can also be set by
    OpenTelemetry's variables, see `http_spans`.
    """

    makes_server_span = True

    def __init__(
        self,
        app: ASGIApplication,
        *,
        excluded_urls: str | Iterable[str] | None = None,
        request_hook: RequestHook | None = None,
        response_hook: ResponseHook | None = None,
        request_headers: Iterable[str] | None = None,
        response_headers: Iterable[str] | None = None,
        secret_headers: Iterable[str] | None = None,
        library: str = "HTTP",
    ) -> None:
        self.app = app
        self._contribs: tuple[makers.Maker, ...] | None = None
        self._is_plain = False  # nobody else's span to leave alone and no URL excluded, as far as is known
        self._excluded = url_test(library, excluded_urls)
        self._library = library
        self._request_hook = request_hook
        self._response_hook = response_hook
        self._request_headers = header_capture("server", "request", request_headers, secret_headers)
        self._response_headers = header_capture("server", "response", response_headers, secret_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        met = _tracer.enter(scope, KEY) if self._is_plain else None
        if type(met) is ContextScope:  # the caller says no, and there is nothing else to look at
            try:
                return await self.app(scope, receive, send)
            finally:
                met.close()
        kind = scope["type"]
        if (kind != "http" and kind != "websocket") or (met is None and self._is_contribs(scope)):
            return await self.app(scope, receive, send)
        arrival = Arrival(met) if met is not None else self._look(scope)
        if arrival is None:
            return await self.app(scope, receive, send)
        if isinstance(arrival, Arrival):
            return await self._record(scope, receive, send, arrival)
        try:
            return await self.app(scope, receive, send)
        finally:
            tags.over(current(), None)
            arrival.close()

    def _is_contribs(self, asgi_scope: Scope) -> bool:
        """Whether the span is contrib's, whose middleware or instrumentation is within."""
        if self._contribs is None:
            self._contribs = makers.contribs(self.app)
            self._is_plain = not self._contribs and self._excluded is None
        return any(makes_span() for makes_span in self._contribs) and not self.shuns(asgi_scope)

    def _look(self, asgi_scope: Scope) -> Arrival | ContextScope | None:
        """The request's Arrival; an open scope, where it is to have no span; None where somebody else serves it already."""
        arrival: Arrival | None = asgi_scope.get(KEY)
        if arrival is not None:
            if arrival.span is not None:
                return None
            context = arrival.context
        else:
            base, is_served = caller()
            if is_served or (
                current() and (asgi_scope.get("fastapi.telemetry") or asgi_scope.get("starlette.opentelemetry"))
            ):
                return None
            context = extract(asgi_scope, base)
            context = tags.received(context, asgi_scope.get("headers", ()), asgi_scope.get("path", ""))
        if not _tracer.records(context):
            return enter_scope(context)
        if self._excluded is not None and self._excluded(_url(asgi_scope)):
            _silence(asgi_scope)
            return enter_scope(context)
        return arrival or Arrival(context)

    def shuns(self, asgi_scope: Scope) -> bool:
        """Whether this URL is excluded by the variables of a framework, which contrib's instrumentation of it reads too."""
        return self._library != "HTTP" and self._excluded is not None and bool(self._excluded(_url(asgi_scope)))

    async def _record(self, asgi_scope: Scope, receive: Receive, send: Send, arrival: Arrival) -> None:
        span = arrival.begin(_tracer, _name(asgi_scope), self._attributes(asgi_scope))
        is_recording = span.is_recording()
        if is_recording or self._response_hook is not None:
            send = self._telling(span, asgi_scope, send)
        opened = enter_scope(arrival.inside)
        try:
            if self._request_hook is not None:
                call_hook(self._request_hook, span, asgi_scope)
            _silence(asgi_scope)
            await self.app(arrival.within(asgi_scope), receive, send)
            if is_recording and tasks_wait():
                await asyncio.sleep(0)
        except BaseException as error:
            if not _has_left(error):
                record_failure(span, error)
            raise
        finally:
            opened.close()
            if is_recording:
                _find_route(asgi_scope)
            asgi_scope.pop("fastapi.telemetry", None)
            asgi_scope.pop("starlette.opentelemetry", None)
            arrival.over()
            end_span(span)

    def _telling(self, span: Span, asgi_scope: Scope, send: Send) -> Send:
        """`send`, that the span hears of the response by."""

        def telling(message: Message) -> Awaitable[None]:
            if message["type"] in _RESPONSES:
                self._respond(span, asgi_scope, message)
            return send(message)

        return telling

    def _respond(self, span: Span, asgi_scope: Scope, message: Message) -> None:
        if span.is_recording():
            record_server_status(span, _RESPONSES[message["type"]] or message["status"])
            if self._response_headers is not None:
                span.set_attributes(self._response_headers(message.get("headers", ())))
        if self._response_hook is not None:
            call_hook(self._response_hook, span, asgi_scope, message)

    def _attributes(self, asgi_scope: Scope) -> dict[str, Any]:
        get = asgi_scope.get
        headers = get("headers", ())
        is_websocket = asgi_scope["type"] == "websocket"
        attributes = {
            **_common_attributes(
                "GET" if is_websocket else asgi_scope["method"],
                get("scheme", "ws" if is_websocket else "http"),
                get("http_version"),
                (find_header(headers, b"host") or b"")[:SHOWN_CHARACTERS],
                (find_header(headers, b"user-agent") or b"")[:SHOWN_CHARACTERS],
            ),
            "url.path": _path(asgi_scope),
        }
        if query := get("query_string"):
            attributes["url.query"] = redacted_query(query.decode("latin-1"))[:SHOWN_CHARACTERS]
        if "server.address" not in attributes:
            attributes.update(_listening(get("server")))
        if client := get("client"):
            attributes["client.address"] = client[0]
        if is_websocket:
            attributes["network.protocol.name"] = "websocket"
        if self._request_headers is not None:
            attributes.update(self._request_headers(headers))
        return attributes


@functools.lru_cache(256)
def _common_attributes(method: str, scheme: str, version: str | None, host: bytes, agent: bytes) -> Mapping[str, Any]:
    """What the requests of one client to one host have in common."""
    attributes = {**method_attributes(method), "url.scheme": scheme}
    if host:
        attributes.update(server_address(host.decode("latin-1")))
    if agent:
        attributes["user_agent.original"] = agent.decode("latin-1")
    if version:
        attributes["network.protocol.version"] = version
    return attributes


serving = Serving(Edge, Middleware)


def entering(original: Any) -> Callable[..., Any]:
    """To be put in the place of an application's `__call__`: it has its edge, unless somebody has met the request before."""

    async def call(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in REQUESTS or KEY in scope or "fastapi.telemetry" in scope:
            await original(self, scope, receive, send)
        else:
            await serving.entered(self, original)(scope, receive, send)

    return call


# The messages that begin a response, and its status where the message does not tell.
_RESPONSES = {
    "http.response.start": None,
    "websocket.http.response.start": None,
    "websocket.accept": 101,
}


def routed(asgi_scope: Scope, route: str) -> None:
    """A framework has found the route of the request that this scope belongs to."""
    arrival = asgi_scope.get(KEY)
    if arrival is not None:
        route = asgi_scope.get("root_path", "").rstrip("/") + route or "/"
        arrival.routed(_name(asgi_scope, route), route)


def failed(asgi_scope: Scope, error: BaseException) -> None:
    """A framework answers for an exception that the request has ended with."""
    arrival = asgi_scope.get(KEY)
    if arrival is not None and arrival.begun:
        record_failure(arrival.span, error)


def _find_route(asgi_scope: Scope) -> None:
    """Starlette and what is built on it leave the route in the scope, a mounted application its place in root_path."""
    route = asgi_scope.get("route")
    path = getattr(route, "path_format", None)
    if isinstance(path, str):
        routed(asgi_scope, "" if hasattr(route, "app") and hasattr(route, "routes") else path)


def _silence(asgi_scope: Scope) -> None:
    """FastAPI's own telemetry and Starlette's keep quiet where they find these keys."""
    asgi_scope.setdefault("fastapi.telemetry", None)
    asgi_scope["starlette.opentelemetry"] = True


def _has_left(error: BaseException) -> bool:
    """The client of a websocket has closed it, as clients do at last."""
    return type(error).__name__ == "WebSocketDisconnect" and getattr(error, "code", None) in (1000, 1001)


def _name(asgi_scope: Scope, route: str | None = None) -> str:
    return span_name("GET" if asgi_scope["type"] == "websocket" else asgi_scope["method"], route)


def _path(asgi_scope: Scope) -> str:
    """As the client wrote it, where the server tells; `path` has lost its percent codes."""
    raw = asgi_scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(asgi_scope.get("path", "/"))
    return path[:SHOWN_CHARACTERS]


def _url(asgi_scope: Scope) -> str:
    host = (find_header(asgi_scope.get("headers", ()), b"host") or b"").decode("latin-1")
    return f"{asgi_scope.get('scheme', 'http')}://{host}{_path(asgi_scope)}"


def _listening(server: Any) -> dict[str, Any]:
    if not server:
        return {}
    return {"server.address": server[0]} | ({"server.port": server[1]} if server[1] else {})
