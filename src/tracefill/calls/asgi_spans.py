"""The server spans of ASGI applications: what every ASGI server and framework shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote

from opentelemetry.trace import Span

from tracefill import tags
from tracefill.calls.http_spans import (
    SHOWN_CHARACTERS,
    HeaderCapture,
    call_hook,
    method_attributes,
    record_failure,
    record_server_status,
    redacted_query,
    server_address,
    span_name,
)
from tracefill.calls.http_spans import excluded_urls as url_test
from tracefill.context import current, extract, scope
from tracefill.edge.arrivals import KEY, Arrival, caller
from tracefill.edge.asgi import ASGIApplication, Edge, Message, Receive, Scope, Send, header, let_tasks_begin
from tracefill.edge.entrances import Serving
from tracefill.spans import Tracer

__all__ = ["Middleware", "routed", "serving"]

_tracer = Tracer("tracefill.calls.asgi")

RequestHook = Callable[[Span, Scope], object]
ResponseHook = Callable[[Span, Scope, Message], object]


class Middleware:
    """The application with a server span around each HTTP request and each websocket connection.

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
        self._excluded = url_test(library, excluded_urls)
        self._request_hook = request_hook
        self._response_hook = response_hook
        self._request_headers = HeaderCapture("server", "request", request_headers, secret_headers)
        self._response_headers = HeaderCapture("server", "response", response_headers, secret_headers)

    async def __call__(self, asgi_scope: Scope, receive: Receive, send: Send) -> None:
        kind = asgi_scope["type"]
        if kind != "http" and kind != "websocket":
            return await self.app(asgi_scope, receive, send)
        arrival = asgi_scope.get(KEY)
        if arrival is not None:
            if arrival.span is not None:
                return await self.app(asgi_scope, receive, send)
            context = arrival.context
        elif current():
            base, is_served = caller()
            if is_served or asgi_scope.get("fastapi.telemetry") or asgi_scope.get("starlette.opentelemetry"):
                return await self.app(asgi_scope, receive, send)
            context = extract(asgi_scope, base)
        else:
            context = extract(asgi_scope)
        if arrival is None and tags.declared():
            context = tags.received(context, asgi_scope.get("headers", ()), asgi_scope.get("path", ""))
        if not _tracer.records(context) or (self._excluded is not None and self._excluded(_url(asgi_scope))):
            with scope(context):
                return await self.app(asgi_scope, receive, send)
        return await self._record(asgi_scope, receive, send, arrival or Arrival(context))

    async def _record(self, asgi_scope: Scope, receive: Receive, send: Send, arrival: Arrival) -> None:
        span = arrival.begin(_tracer, _name(asgi_scope), lambda: self._attributes(asgi_scope))

        def sending(message: Message) -> Awaitable[None]:
            if message["type"] in _RESPONSES:
                self._respond(span, asgi_scope, message)
            return send(message)

        try:
            with scope(arrival.inside):
                if self._request_hook is not None:
                    call_hook(self._request_hook, span, asgi_scope)
                # FastAPI's own telemetry keeps quiet where it finds this key.
                asgi_scope.setdefault("fastapi.telemetry", None)
                await self.app(arrival.within(asgi_scope), receive, sending)
                await let_tasks_begin()
        except BaseException as error:
            if not _has_left(error):
                record_failure(span, error)
            raise
        finally:
            _find_route(asgi_scope)
            asgi_scope.pop("fastapi.telemetry", None)
            arrival.over()
            span.end()

    def _respond(self, span: Span, asgi_scope: Scope, message: Message) -> None:
        if span.is_recording():
            record_server_status(span, _RESPONSES[message["type"]] or message["status"])
            if self._response_headers:
                span.set_attributes(self._response_headers(message.get("headers", ())))
        if self._response_hook is not None:
            call_hook(self._response_hook, span, asgi_scope, message)

    def _attributes(self, asgi_scope: Scope) -> dict[str, Any]:
        get = asgi_scope.get
        headers = get("headers", ())
        host, agent = header(headers, b"host"), header(headers, b"user-agent")
        is_websocket = asgi_scope["type"] == "websocket"
        attributes = method_attributes("GET" if is_websocket else asgi_scope["method"])
        attributes["url.scheme"] = get("scheme", "ws" if is_websocket else "http")
        attributes["url.path"] = _path(asgi_scope)
        if query := get("query_string"):
            attributes["url.query"] = redacted_query(query.decode("latin-1"))[:SHOWN_CHARACTERS]
        attributes.update(server_address(host.decode("latin-1")) if host else _listening(get("server")))
        if client := get("client"):
            attributes["client.address"] = client[0]
        if agent:
            attributes["user_agent.original"] = agent[:SHOWN_CHARACTERS].decode("latin-1")
        if version := get("http_version"):
            attributes["network.protocol.version"] = version
        if is_websocket:
            attributes["network.protocol.name"] = "websocket"
        if self._request_headers:
            attributes.update(self._request_headers(headers))
        return attributes


serving = Serving(Edge, Middleware)

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


def _find_route(asgi_scope: Scope) -> None:
    """Starlette and what is built on it leave the route in the scope, a mounted application its place in root_path."""
    route = asgi_scope.get("route")
    path = getattr(route, "path_format", None)
    if isinstance(path, str):
        routed(asgi_scope, "" if hasattr(route, "app") and hasattr(route, "routes") else path)


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
    host = (header(asgi_scope.get("headers", ()), b"host") or b"").decode("latin-1")
    return f"{asgi_scope.get('scheme', 'http')}://{host}{_path(asgi_scope)}"


def _listening(server: Any) -> dict[str, Any]:
    if not server:
        return {}
    return {"server.address": server[0]} | ({"server.port": server[1]} if server[1] else {})
