"""What gRPC spans are called and say, and how their context rides in metadata; for clients and servers, sync and aio alike.

https://opentelemetry.io/docs/specs/semconv/rpc/grpc/ (v1.44.0).

| variable | what it holds |
|---|---|
| OTEL_PYTHON_GRPC_EXCLUDED_SERVICES | names of services that are to have no span, commas between them |
| TRACEFILL_GRPC_TRACE_BIN=1 | `grpc-trace-bin` is sent too, for peers that read nothing else |
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from tracefill import tags
from tracefill._codec import with_span
from tracefill.calls.http_spans import call_hook, record_failure
from tracefill.context import current, extract, inject
from tracefill.edge import request_ids
from tracefill.edge.arrivals import Arrival, further_in
from tracefill.formats import GRPC_BIN
from tracefill.snapshots import bind, snapshot
from tracefill.spans import Tracer, suppressed

__all__ = ["CONTRIB", "ClientCall", "ServerCall", "begin_client", "begin_server", "is_on", "metadata_context", "switch"]

#: Where contrib's client interceptor, which leaves its work to ours, leaves itself in the context of the call; None where its
#: filter wants no span.
CONTRIB = "tracefill-grpc-contrib"

Metadata = Iterable[tuple[str, Any]]

_tracer = Tracer("tracefill.calls.grpc")
_EXCLUDED = frozenset(
    filter(None, os.environ.get("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "").replace(" ", "").split(","))
)
_WRITES_BINARY = os.environ.get("TRACEFILL_GRPC_TRACE_BIN") == "1"
_BINARY = GRPC_BIN.fields[0]

# What is the server's fault, and not its caller's.
_SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)


_is_on = False


def switch(on: bool) -> None:
    """install() traces every channel and server, or does so no more."""
    global _is_on
    _is_on = on


def is_on() -> bool:
    """True while contrib's and our own interceptors may leave their work to install()."""
    return _is_on


def begin_client(method: str | bytes, target: str | bytes, request: Any = None, like: Any = None) -> ClientCall | None:
    """A call that is about to be made; None when it is not to be traced. `like`: contrib's interceptor of the channel."""
    method = method.decode() if isinstance(method, bytes) else method
    outer = current()
    if CONTRIB in outer:
        like = outer[CONTRIB]
        if like is None:
            return None
        outer = Context({key: value for key, value in outer.items() if key != CONTRIB})
    if suppressed(outer) or _is_excluded(method):
        return None
    if not _tracer.records(outer):
        return ClientCall(outer, None, target=target)
    span = _tracer.start(method.lstrip("/"), "client", outer, lambda: _attributes(method, target))
    hook = getattr(like, "_request_hook", None)
    if callable(hook):
        call_hook(hook, span, request)
    return ClientCall(outer, span, getattr(like, "_response_hook", None), target)


def begin_server(method: str, metadata: Metadata | None) -> ServerCall | None:
    """A call that has come in; None when it is not to be traced."""
    if suppressed() or _is_excluded(method):
        return None
    given = list(metadata or ())
    sent = next((value for key, value in given if key == "x-request-id"), None)
    arrival = further_in(metadata_context(given), sent)
    if tags.declared():
        arrival.bring_tags(given, method)
    if not _tracer.records(arrival.context):
        return ServerCall(arrival, None)
    return ServerCall(arrival, arrival.begin(_tracer, method.lstrip("/"), _attributes(method)))


def metadata_context(metadata: Metadata) -> Context:
    """The Context that metadata describes, by `grpc-trace-bin` where there is nothing else; an empty one without any."""
    pairs = list(metadata)
    context: Context = extract(pairs)
    if not _has_position(context):
        for key, value in pairs:
            position = GRPC_BIN.decode(value) if key == _BINARY and isinstance(value, bytes) else None
            if position is not None:
                return position.to_context(context)
    return context


class ClientCall:
    """One call and its answer; ends once, however often it is told."""

    __slots__ = ("_hook", "_is_over", "_span", "_target", "inside")

    def __init__(self, outer: Context, span: Span | None, response_hook: Any = None, target: str | bytes = "") -> None:
        self._span = span
        self._target = target
        self._hook = response_hook
        self._is_over = False
        self.inside = outer if span is None else with_span(outer, span)

    def metadata(self, given: Metadata | None) -> Any:
        """What to send: what the caller gives, repeated keys and all, and the position of this call in place of his."""
        kept = list(given or ())
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in kept):
            return given  # which gRPC itself will refuse
        ours: dict[str, Any] = {}
        if tags.declared():
            tags.inject(ours, self.inside, _host(self._target), kept)
        else:
            inject(ours, self.inside)
        ours = {key.lower(): value for key, value in ours.items()}
        request_id = request_ids.current(self.inside)
        if request_id is not None and all(key != "x-request-id" for key, _ in kept):
            ours["x-request-id"] = request_id
        if _WRITES_BINARY:
            ours[_BINARY] = _binary(self.inside)
        replaced = {*ours, "tracestate", _BINARY} if "traceparent" in ours else set(ours)
        return [
            *((key, value) for key, value in kept if key not in replaced),
            *((key, value) for key, value in ours.items() if value is not None),
        ]

    def end(self, code: str, details: str | None = None, response: Any = None) -> None:
        """The status has come: its name, as in "OK" or "DEADLINE_EXCEEDED"."""
        if self._is_over:
            return
        self._is_over = True
        if self._span is None:
            return
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, details or None))
        elif callable(self._hook) and response is not None:
            call_hook(self._hook, self._span, response)
        self._span.end()

    def fail(self, error: BaseException) -> None:
        """The call has raised: gRPC's own exceptions know the status."""
        code = getattr(error, "code", None)
        status = code() if callable(code) else None
        if status is not None:
            return self.end(status.name, _details(error))
        if self._span is not None and not self._is_over:
            record_failure(self._span, error)
            self._span.end()
        self._is_over = True
        return None

    def __del__(self) -> None:
        self.end("CANCELLED", "nobody has waited for the answer")


class ServerCall:
    """One call that is served. `inside` is current while it is; its span ends with the handler, and after the callbacks that the
    handler has left."""

    __slots__ = ("_held", "_is_over", "_lock", "_outcome", "_span", "inside")

    def __init__(self, arrival: Arrival, span: Span | None) -> None:
        self._span = span
        self._held = 0
        self._lock = threading.Lock()
        self._outcome: tuple[str, str | None, BaseException | None] | None = None
        self._is_over = False
        self.inside = arrival.inside if span is not None else arrival.context

    def end(self, code: str, details: str | None = None, error: BaseException | None = None) -> None:
        """It has been served, with a status of this name; `error`: what the handler raised, unless that was an abort."""
        with self._lock:
            if self._outcome is None:
                self._outcome = code, details, error
        self._end_if_done()

    def hold(self, callback: Any) -> Any:
        """The callback, to be run in the context of now, before the span ends."""
        if not callable(callback):
            return callback
        bound = bind(callback)
        with self._lock:
            self._held += 1

        def run(*args: Any) -> Any:
            try:
                return bound(*args)
            finally:
                self.release()

        return run

    def release(self) -> None:
        """A callback has been run, or never will be."""
        with self._lock:
            self._held -= 1
        self._end_if_done()

    def _end_if_done(self) -> None:
        with self._lock:
            if self._outcome is None or self._held > 0 or self._is_over:
                return
            self._is_over = True
        self._end(*self._outcome)

    def _end(self, code: str, details: str | None, error: BaseException | None) -> None:
        tags.over(self.inside, self._span)
        if self._span is None:
            return
        self._span.set_attribute("rpc.response.status_code", code)
        if error is not None:
            record_failure(self._span, error)
        if code in _SERVER_ERRORS:
            if error is None:
                self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, details or None))
        self._span.end()

    def __del__(self) -> None:
        if not self._is_over:
            self._held = 0
            self.end("CANCELLED")


def _attributes(method: str, target: str | bytes = b"") -> Mapping[str, Any]:
    attributes: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": method.lstrip("/")}
    text = target.decode() if isinstance(target, bytes) else target
    if text:
        attributes.update(_address(text))
    return attributes


def _host(target: str | bytes) -> str | None:
    return _address(target.decode() if isinstance(target, bytes) else target).get("server.address")


def _address(target: str) -> dict[str, Any]:
    """server.address and server.port of a channel's target.

    >>> _address("dns:///shop.example:50051"), _address("unix:/run/shop.sock"), _address("ipv6:[::1]:80")
    ({'server.address': 'shop.example', 'server.port': 50051}, {'server.address': '/run/shop.sock'}, {'server.address': '::1', 'server.port': 80})
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return {"server.address": rest.removeprefix("//")}
    if colon and (rest.startswith("/") or scheme in ("dns", "ipv4", "ipv6", "xds")):
        target = rest.rpartition("/")[2]
    target = target.partition(",")[0]
    host, colon, port = target.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.startswith("[")):
        return {"server.address": host.strip("[]"), "server.port": int(port)}
    return {"server.address": target.strip("[]")}


def _has_position(context: Context) -> bool:
    return trace.get_current_span(context) is not trace.INVALID_SPAN


def _is_excluded(method: str) -> bool:
    return bool(_EXCLUDED) and method.strip("/").partition("/")[0] in _EXCLUDED


def _binary(context: Context) -> Any:
    position = snapshot(context)
    value = GRPC_BIN.encode(position)[0] if position.is_valid else None
    position.release()
    return value


def _details(error: Any) -> str | None:
    details = getattr(error, "details", None)
    return details() if callable(details) else None
