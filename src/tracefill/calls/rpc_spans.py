"""What gRPC spans are called and say, and how their context rides in metadata; for clients and servers, sync and aio alike.

https://opentelemetry.io/docs/specs/semconv/rpc/grpc/ (v1.44.0).

| variable | what it holds |
|---|---|
| OTEL_PYTHON_GRPC_EXCLUDED_SERVICES | names of services that are to have no span, commas between them |
| TRACEFILL_GRPC_TRACE_BIN=1 | `grpc-trace-bin` is sent too, for peers that read nothing else |
"""

from __future__ import annotations

import contextvars
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
from tracefill.sdk_spans import end_span
from tracefill.snapshots import bind, snapshot
from tracefill.spans import Tracer, suppressed

__all__ = [
    "CONTRIB",
    "WRITES_BINARY",
    "ClientCall",
    "ServerCall",
    "begin_client",
    "begin_server",
    "is_on",
    "metadata_context",
    "switch",
]

#: Where contrib's client interceptor, which leaves its work to ours, leaves itself in the context of the call; None where its
#: filter wants no span.
CONTRIB = "tracefill-grpc-contrib"

#: True while an interceptor that is to write `grpc-trace-bin` makes a call, whoever traces that.
WRITES_BINARY: contextvars.ContextVar[bool] = contextvars.ContextVar("tracefill_grpc_trace_bin", default=False)

Metadata = Iterable[tuple[str, Any]]

_tracer = Tracer("tracefill.calls.grpc")
_EXCLUDED = frozenset(
    filter(None, os.environ.get("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "").replace(" ", "").split(","))
)
_BINARY = GRPC_BIN.fields[0]

# What is the server's fault, and not its caller's.
_SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)


_is_on = False
_writes_binary = os.environ.get("TRACEFILL_GRPC_TRACE_BIN") == "1"


def switch(on: bool) -> None:
    """install() traces every channel and server, or does so no more."""
    global _is_on, _writes_binary
    _is_on = on
    _writes_binary = os.environ.get("TRACEFILL_GRPC_TRACE_BIN") == "1"


def is_on() -> bool:
    """True while contrib's and our own interceptors may leave their work to install()."""
    return _is_on


def begin_client(
    method: str | bytes, target: str | bytes, request: Any = None, like: Any = None, *, is_traced: bool = True
) -> ClientCall | None:
    """A call that is about to be made; None when nothing is to be sent along. `like`: contrib's interceptor of the channel;
    `is_traced`: False for a call that carries the caller's own position, and has no span."""
    method = method.decode() if isinstance(method, bytes) else method
    outer = current()
    if CONTRIB in outer:
        like = outer[CONTRIB]
        is_traced = like is not None
        outer = Context({key: value for key, value in outer.items() if key != CONTRIB})
    if suppressed(outer):
        return None
    if not is_traced or _is_excluded(method) or not _tracer.records(outer):
        return ClientCall(outer, None, target=target)
    span = _tracer.start(method.lstrip("/"), "client", outer, lambda: _attributes(method, target))
    hook = getattr(like, "_request_hook", None)
    if callable(hook):
        call_hook(hook, span, request)
    return ClientCall(outer, span, getattr(like, "_response_hook", None), target)


def begin_server(method: str, metadata: Metadata | None, *, is_traced: bool = True) -> ServerCall | None:
    """A call that has come in; None when instrumentation is suppressed. `is_traced`: False for a call that is its caller's, and has
    no span of its own."""
    if suppressed():
        return None
    given = list(metadata or ())
    sent = next((value for key, value in given if key == "x-request-id"), None)
    arrival = further_in(metadata_context(given), sent)
    if tags.declared():
        arrival.bring_tags(given, method)
    if not is_traced or _is_excluded(method) or not _tracer.records(arrival.context):
        return ServerCall(arrival, None)
    return ServerCall(arrival, arrival.begin(_tracer, method.lstrip("/"), _attributes(method)))


def metadata_context(metadata: Metadata | Mapping[str, Any] | None, context: Context | None = None) -> Context:
    """The Context that metadata describes, by `grpc-trace-bin` where there is nothing else; `context` (default: an empty one)
    where it describes none."""
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata or ())
    found: Context = extract(pairs, context)
    values = [value for key, value in pairs if key == _BINARY]
    if values and not _has_position(extract(pairs)):
        for value in values:
            position = GRPC_BIN.decode(value)
            if position is not None:
                return position.to_context(found)
    return found


class ClientCall:
    """One call and its answer; ends once, however often it is told."""

    __slots__ = ("_hook", "_is_over", "_span", "_target", "_writes_binary", "inside")

    def __init__(self, outer: Context, span: Span | None, response_hook: Any = None, target: str | bytes = "") -> None:
        self._span = span
        self._target = target
        self._hook = response_hook
        self._is_over = False
        self._writes_binary = _writes_binary or WRITES_BINARY.get()
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
        if self._writes_binary:
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
        end_span(self._span)

    def fail(self, error: BaseException) -> None:
        """The call has raised: gRPC's own exceptions know the status."""
        code = getattr(error, "code", None)
        status = code() if callable(code) else None
        if status is not None:
            return self.end(status.name, _details(error))
        if self._span is not None and not self._is_over:
            record_failure(self._span, error)
            end_span(self._span)
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
        end_span(self._span)

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
