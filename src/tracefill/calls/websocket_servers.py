"""The servers of the websockets library itself: a server span for each connection, as long as its handler."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from tracefill import tags
from tracefill._codec import Scope, enter_scope
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
from tracefill.context import extract
from tracefill.edge.announcements import HEADER, HEARD, VERSION, Heard, asked
from tracefill.edge.arrivals import Arrival, further_in
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["patch_async", "patch_sync"]

_tracer = Tracer("tracefill.calls.websockets")
_excluded: UrlTest | None = None
_request_headers: HeaderCapture | None = None
_response_headers: HeaderCapture | None = None

# Where a connection keeps the _Serving that its handler works under.
_SERVING = "tracefill.serving"


def patch_sync(patches: Patches, connection: Any) -> None:
    _read_variables()
    patches.wrap(connection, "handshake", _handshake)
    patches.wrap(connection, "__exit__", _exit)
    patches.wrap(connection, "close", _close)
    patches.wrap(connection, "recv", _recv)
    patches.wrap(connection, "recv_streaming", _recv_streaming)


def patch_async(patches: Patches, connection: Any) -> None:
    _read_variables()
    patches.wrap(connection, "handshake", _handshake_async)
    patches.wrap(connection, "__aexit__", _exit_async)
    patches.wrap(connection, "close", _close)
    patches.wrap(connection, "recv", _recv_async)
    patches.wrap(connection, "recv_streaming", _recv_streaming_async)


def _read_variables() -> None:
    global _excluded, _request_headers, _response_headers
    _excluded = excluded_urls("WEBSOCKETS_SERVER")
    _request_headers, _response_headers = header_capture("server", "request"), header_capture("server", "response")


class _Serving:
    """One connection, from its request until its handler is done. The context is current from `begin` to `end`."""

    def __init__(self, process_request: Any, process_response: Any) -> None:
        self._process_request = process_request
        self._process_response = process_response
        self._arrival: Arrival | None = None
        self._scope: Scope | None = None

    def request(self, connection: Any, request: Any) -> Any:
        """The library calls it in the place of the program's `process_request`."""
        self._begin(connection, request)
        if asked(",".join(request.headers.get_all(HEADER))):
            vars(connection.protocol)[HEARD] = Heard()
        return self._process_request(connection, request) if self._process_request is not None else None

    def response(self, connection: Any, request: Any, response: Any) -> Any:
        """The same for `process_response`."""
        if self._arrival is not None:
            for name, value in self._arrival.answers().items():
                response.headers.setdefault(name, value)
        if response.status_code == 101 and HEARD in vars(connection.protocol):
            response.headers[HEADER] = VERSION
        return self._process_response(connection, request, response) if self._process_response is not None else None

    def _begin(self, connection: Any, request: Any) -> None:
        headers = list(request.headers.raw_items())
        arrival = further_in(extract(headers), ",".join(request.headers.get_all("X-Request-ID")) or None)
        if tags.declared():
            arrival.bring_tags(headers, request.path)
        if _tracer.records(arrival.context) and not (_excluded is not None and _excluded(_url(connection, request))):
            arrival.begin(_tracer, span_name("GET"), _attributes(connection, request, headers))
        self._arrival = arrival
        self._scope = enter_scope(arrival.inside)

    def answered(self, connection: Any) -> None:
        """The handshake is over. Where it was accepted, the handler comes next, and what it does ends all this."""
        response = connection.response
        span = self._arrival.span if self._arrival is not None else None
        if span is not None and response is not None:
            record_server_status(span, response.status_code)
            if _response_headers is not None:
                span.set_attributes(_response_headers(response.headers.raw_items()))
        if connection.protocol.state.name == "OPEN":
            vars(connection)[_SERVING] = self
        else:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        scope, self._scope = self._scope, None
        if scope is None or self._arrival is None:
            return
        scope.close()
        self._arrival.over()
        span = self._arrival.span
        if span is not None:
            if error is not None and type(error).__name__ != "ConnectionClosedOK":  # clients leave, at last
                record_failure(span, error)
            end_span(span)


def _handshake(original: Any) -> Callable[..., Any]:
    def handshake(
        self: Any, process_request: Any = None, process_response: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        serving = _Serving(process_request, process_response)
        try:
            original(self, serving.request, serving.response, *args, **kwargs)
        except BaseException as error:
            serving.end(error)
            raise
        serving.answered(self)

    return handshake


def _handshake_async(original: Any) -> Callable[..., Any]:
    async def handshake(
        self: Any, process_request: Any = None, process_response: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        serving = _Serving(process_request, process_response)
        try:
            await original(self, serving.request, serving.response, *args, **kwargs)
        except BaseException as error:
            serving.end(error)
            raise
        serving.answered(self)

    return handshake


def _exit(original: Any) -> Callable[..., Any]:
    def leave(self: Any, kind: Any, error: Any, traceback: Any) -> Any:
        _end(self, error)
        return original(self, kind, error, traceback)

    return leave


def _exit_async(original: Any) -> Callable[..., Any]:
    async def leave(self: Any, kind: Any, error: Any, traceback: Any) -> Any:
        _end(self, error)
        return await original(self, kind, error, traceback)

    return leave


def _close(original: Any) -> Callable[..., Any]:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        # Servers before websockets 17 have no `with` around the handler: they close the connection when it is done.
        if caller.f_code.co_name == "conn_handler" and caller.f_globals.get("__name__", "").startswith("websockets."):
            _end(self, sys.exc_info()[1])
        return original(self, *args, **kwargs)

    return close


def _end(connection: Any, error: BaseException | None) -> None:
    serving = vars(connection).pop(_SERVING, None)
    if serving is not None:
        serving.end(error)


# --------------------------------------------------------------------------------------------------------------- messages


def _recv(original: Any) -> Callable[..., Any]:
    def recv(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard: Heard | None = vars(self.protocol).get(HEARD)
        if heard is None:
            return original(self, *args, **kwargs)
        heard.leave()
        message = original(self, *args, **kwargs)
        heard.deliver()
        return message

    return recv


def _recv_async(original: Any) -> Callable[..., Any]:
    async def recv(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard: Heard | None = vars(self.protocol).get(HEARD)
        if heard is None:
            return await original(self, *args, **kwargs)
        heard.leave()
        message = await original(self, *args, **kwargs)
        heard.deliver()
        return message

    return recv


def _recv_streaming(original: Any) -> Callable[..., Any]:
    def recv_streaming(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard: Heard | None = vars(self.protocol).get(HEARD)
        fragments = original(self, *args, **kwargs)
        return fragments if heard is None else _streamed(heard, fragments)

    return recv_streaming


def _streamed(heard: Heard, fragments: Any) -> Any:
    heard.leave()
    for number, fragment in enumerate(fragments):
        if not number:
            heard.deliver()
        yield fragment


def _recv_streaming_async(original: Any) -> Callable[..., Any]:
    def recv_streaming(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard: Heard | None = vars(self.protocol).get(HEARD)
        fragments = original(self, *args, **kwargs)
        return fragments if heard is None else _streamed_async(heard, fragments)

    return recv_streaming


async def _streamed_async(heard: Heard, fragments: Any) -> Any:
    heard.leave()
    is_first = True
    async for fragment in fragments:
        if is_first:
            heard.deliver()
            is_first = False
        yield fragment


# ------------------------------------------------------------------------------------------------------------- attributes


def _url(connection: Any, request: Any) -> str:
    return f"{_scheme(connection)}://{','.join(request.headers.get_all('Host'))}{request.path}"


def _scheme(connection: Any) -> str:
    if hasattr(connection, "transport"):
        return "wss" if connection.transport.get_extra_info("ssl_object") is not None else "ws"
    return "wss" if hasattr(connection.socket, "getpeercert") else "ws"


def _attributes(connection: Any, request: Any, headers: list[tuple[str, str]]) -> dict[str, Any]:
    path, _, query = request.path.partition("?")
    attributes = method_attributes("GET")
    attributes["url.scheme"] = _scheme(connection)
    attributes["url.path"] = path[:SHOWN_CHARACTERS]
    if query:
        attributes["url.query"] = redacted_query(query)[:SHOWN_CHARACTERS]
    attributes.update(server_address(",".join(request.headers.get_all("Host"))))
    with contextlib.suppress(OSError):  # the client has gone
        if isinstance(client := connection.remote_address, tuple):
            attributes["client.address"] = client[0]
    if agent := ",".join(request.headers.get_all("User-Agent")):
        attributes["user_agent.original"] = agent[:SHOWN_CHARACTERS]
    attributes["network.protocol.name"] = "websocket"
    attributes["network.protocol.version"] = "1.1"
    if _request_headers is not None:
        attributes.update(_request_headers(headers))
    return attributes
