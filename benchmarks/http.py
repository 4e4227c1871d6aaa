"""The rows of HTTP servers: what a request costs more than without, by contrib's middleware and by tracefill's.

The application answers at once and its server is a function call, so that what is timed is the tracing alone: reading the
headers, the span, its attributes, the scope. Spans are the SDK's in both, and nobody exports them.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as ContribWSGI

from benchmarks.sdk import provider
from benchmarks.timing import Case
from tracefill.calls import asgi, wsgi

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
# (who the caller is, his traceparent, the floor beside contrib for ASGI, for WSGI)
REQUESTS = (
    ("sampled, SDK span", f"00-{TRACE_ID}-00f067aa0ba902b7-01", 6, 3),
    ("unsampled, the SDK is asked", None, 10, 3),
    ("unsampled by the caller", f"00-{TRACE_ID}-00f067aa0ba902b7-00", 80, 50),
)
HEADERS = {
    "host": "shop.example.com", "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0)", "accept": "*/*",
    "accept-encoding": "gzip, deflate, br", "accept-language": "en", "content-type": "application/json",
    "content-length": "182", "cookie": "session=3f2a9c", "authorization": "Bearer abc", "x-forwarded-for": "10.1.2.3",
    "x-forwarded-proto": "https", "x-request-id": "7f3c", "cache-control": "no-cache", "connection": "keep-alive",
}  # fmt: skip
seen: list[tuple[int, bool]] = []


def look() -> None:
    """What the user's code finds: the trace that it is in, and whether that is recorded."""
    span = trace.get_current_span()
    seen.append((span.get_span_context().trace_id, span.is_recording()))


def cases() -> list[Case]:
    provider()
    return [
        Case(
            f"added to {'an ASGI' if kind == 'asgi' else 'a WSGI'} request: {name}",
            "inside(stock, request)",
            "inside(ours, request)",
            {
                "inside": contextvars.Context().run,
                "stock": stock,
                "ours": ours,
                "plain": plain,
                "request": request(kind, traceparent),
            },
            right(stock, ours, request(kind, traceparent), traceparent),
            least_asgi if kind == "asgi" else least_wsgi,
            added="inside(plain, request)",
        )
        for kind, (stock, ours, plain) in (("asgi", asgi_callers(look=False)), ("wsgi", wsgi_callers(look=False)))
        for name, traceparent, least_asgi, least_wsgi in REQUESTS
    ]


def right(stock: Any, ours: Any, made: dict[str, Any], traceparent: str | None) -> Callable[[Any, Any], bool]:
    """Under both, the application is in the caller's trace (without a caller: in one), recorded when it is sampled."""

    def check(*_: Any) -> bool:
        found = []
        for call in (asgi_callers(look=True) if made.get("type") else wsgi_callers(look=True))[:2]:
            seen.clear()
            contextvars.Context().run(call, made)
            found.append(seen[-1])
        sampled = traceparent is not None and traceparent.endswith("01")
        if traceparent is None:
            return all(trace_id and not recorded for trace_id, recorded in found)
        return found == [(int(TRACE_ID, 16), sampled)] * 2

    return check


# ------------------------------------------------------------------------------------------------------------------ ASGI


def asgi_callers(look: bool) -> tuple[Callable[..., None], ...]:
    app = looking_asgi_app if look else asgi_app
    return tuple(asgi_caller(wrapped) for wrapped in (ContribASGI(app), asgi.Middleware(app), app))


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"done"})


async def looking_asgi_app(scope: Any, receive: Any, send: Any) -> None:
    look()
    await asgi_app(scope, receive, send)


def asgi_caller(app: Any) -> Callable[..., None]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    def call(request: dict[str, Any]) -> None:
        coroutine = app(dict(request), receive, send)
        try:
            while True:
                coroutine.send(None)  # an event loop that has nothing else to do
        except StopIteration:
            pass

    return call


# ------------------------------------------------------------------------------------------------------------------ WSGI


def wsgi_callers(look: bool) -> tuple[Callable[..., None], ...]:
    app = looking_wsgi_app if look else wsgi_app
    return tuple(wsgi_caller(wrapped) for wrapped in (ContribWSGI(app), wsgi.Middleware(app), app))


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def looking_wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    look()
    return wsgi_app(environ, start_response)


def wsgi_caller(app: Any) -> Callable[..., None]:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        pass

    def call(request: dict[str, Any]) -> None:
        body = app(dict(request), start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()

    return call


def request(kind: str, traceparent: str | None) -> dict[str, Any]:
    headers = HEADERS | ({"traceparent": traceparent} if traceparent else {})
    if kind == "wsgi":
        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders/7", "QUERY_STRING": "full=1"}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        setup_testing_defaults(environ)
        return environ
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/orders/7", "raw_path": b"/orders/7", "query_string": b"full=1", "root_path": "",
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
