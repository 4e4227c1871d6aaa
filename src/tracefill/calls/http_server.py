"""http.server (standard library), and so xmlrpc.server: a server span for each request.

    tracefill.install()
    ThreadingHTTPServer(address, Handler).serve_forever()       # Handler.do_GET runs inside of the span

The span covers the method of the handler, on whatever thread. Handlers that run WSGI applications are left to `wsgi`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from tracefill import tags
from tracefill.calls.http_spans import (
    SHOWN_CHARACTERS,
    HeaderCapture,
    UrlTest,
    excluded_urls,
    header_capture,
    method_attributes,
    record_failure,
    record_server_status,
    redacted_query,
    server_address,
    span_name,
)
from tracefill.context import extract, scope
from tracefill.edge.arrivals import Arrival, further_in
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "patch", "scope", "unpatch"]

LIBRARIES = ("http.server",)

_tracer = Tracer("tracefill.calls.http_server")
_patches = Patches()
_excluded: UrlTest | None = None
_request_headers: HeaderCapture | None
_response_headers: HeaderCapture | None


def patch() -> None:
    global _excluded, _request_headers, _response_headers
    from http.server import BaseHTTPRequestHandler

    _excluded = excluded_urls("HTTP")
    _request_headers, _response_headers = header_capture("server", "request"), header_capture("server", "response")
    _patches.wrap(BaseHTTPRequestHandler, "handle_one_request", _handle_one_request)
    _patches.wrap(BaseHTTPRequestHandler, "parse_request", _parse_request)
    _patches.wrap(BaseHTTPRequestHandler, "send_response_only", _send_response_only)
    _patches.wrap(BaseHTTPRequestHandler, "end_headers", _end_headers)


def unpatch() -> None:
    _patches.undo()


class _Request:
    """What a handler carries while it handles a request; `open()` once its headers are read."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self.arrival: Arrival | None = None
        self._scope: Any = None

    def open(self) -> None:
        handler = self._handler
        sent = handler.headers.get_all("X-Request-ID") or [None]
        arrival = self.arrival = further_in(extract(handler.headers), ",".join(sent) if sent[0] is not None else None)
        if tags.declared():
            arrival.bring_tags(handler.headers, unquote(handler.path.partition("?")[0]))
        if _tracer.records(arrival.context) and not (_excluded is not None and _excluded(_url(handler))):
            arrival.begin(_tracer, span_name(handler.command), _attributes(handler))
        self._scope = scope(arrival.inside)
        self._scope.__enter__()

    def close(self, error: BaseException | None = None) -> None:
        if self.arrival is None:
            return
        self._scope.__exit__(None, None, None)
        self.arrival.over()
        if self.arrival.span is not None:
            if error is not None:
                record_failure(self.arrival.span, error)
            end_span(self.arrival.span)


def _handle_one_request(original: Any) -> Callable[..., None]:
    def handle_one_request(self: Any) -> None:
        if _runs_wsgi(self):
            original(self)
            return
        request = self._tracefill_request = _Request(self)
        try:
            original(self)
        except BaseException as error:
            request.close(error)
            raise
        else:
            request.close()
        finally:
            del self._tracefill_request

    return handle_one_request


def _parse_request(original: Any) -> Callable[..., bool]:
    def parse_request(self: Any) -> bool:
        is_valid: bool = original(self)
        request = vars(self).get("_tracefill_request")
        if is_valid and request is not None:
            request.open()
        return is_valid

    return parse_request


def _send_response_only(original: Any) -> Callable[..., None]:
    def send_response_only(self: Any, code: int, message: str | None = None) -> None:
        arrival = _arrival(self)
        if arrival is not None and arrival.span is not None and code >= 200:
            record_server_status(arrival.span, int(code))
        original(self, code, message)

    return send_response_only


def _end_headers(original: Any) -> Callable[..., None]:
    def end_headers(self: Any) -> None:
        arrival = _arrival(self)
        if arrival is not None:
            written = b"".join(getattr(self, "_headers_buffer", ())).lower()
            for name, value in arrival.answers().items():
                if b"\n" + name.encode() + b":" not in written:
                    self.send_header(name, value)
            if arrival.span is not None and _response_headers is not None:
                arrival.span.set_attributes(_response_headers(_written(self)))
        original(self)

    return end_headers


def _written(handler: Any) -> Iterator[tuple[bytes, bytes]]:
    """The header lines that are about to be sent, behind that of the status."""
    for line in getattr(handler, "_headers_buffer", ())[1:]:
        name, _, value = line.partition(b":")
        yield name, value.strip()


def _arrival(handler: Any) -> Arrival | None:
    request = vars(handler).get("_tracefill_request")
    return None if request is None else request.arrival


def _runs_wsgi(handler: Any) -> bool:
    return hasattr(type(handler), "get_environ") or hasattr(type(handler), "make_environ")


def _attributes(handler: Any) -> dict[str, Any]:
    path, _, query = handler.path.partition("?")
    attributes = method_attributes(handler.command)
    attributes["url.scheme"] = "http"
    attributes["url.path"] = path[:SHOWN_CHARACTERS]
    if query:
        attributes["url.query"] = redacted_query(query)[:SHOWN_CHARACTERS]
    attributes.update(server_address(handler.headers.get("Host", "")))
    attributes["client.address"] = handler.client_address[0] if handler.client_address else ""
    if agent := handler.headers.get("User-Agent"):
        attributes["user_agent.original"] = agent[:SHOWN_CHARACTERS]
    attributes["network.protocol.version"] = handler.request_version.removeprefix("HTTP/")
    if _request_headers is not None:
        attributes.update(_request_headers(handler.headers.items()))
    return attributes


def _url(handler: Any) -> str:
    return f"http://{handler.headers.get('Host', '')}{handler.path}"
