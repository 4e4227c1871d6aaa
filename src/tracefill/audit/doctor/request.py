"""What becomes of a request: one with a trace position is sent to the application itself, no server between, and the spans
that it makes are looked at. None of them goes to the application's exporters.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import tracefill
from tracefill.audit.doctor.finding import Finding
from tracefill.audit.doctor.headers import headers_of

PATH = "/tracefill-doctor"
TIMEOUT_S = 20
# A sampler by ratio keeps low ids, a consistent one high ones.
TRACE_IDS = (1 << 127 | 1, (1 << 128) - 1)
_SERVERS = ("uvicorn", "hypercorn", "daphne", "gunicorn", "waitress", "werkzeug", "wsgi")


class Request(NamedTuple):
    """What is asked for. Without a host: one that Django allows, where it is set up, else localhost."""

    path: str = PATH
    host: str | None = None


ORDINARY = Request()


def findings(app: Any, provider: Any, reads: list[str], request: Request) -> Iterator[Finding]:
    """What the spans of a request show. The provider must be one of the SDK's."""
    shape = _shape(app)
    if shape is None:
        kind = f"{type(app).__module__}.{type(app).__qualname__}"
        yield Finding(
            "request_not_sent", f"{kind} is neither an ASGI nor a WSGI application", "name one that is", note=True
        )
        return
    host = request.host or _allowed_host()
    errors: list[str] = []
    for trace_id in TRACE_IDS:
        with _kept(provider) as spans:
            try:
                _send(shape, app, request.path, {"host": host, **headers_of(reads[0], trace_id)})
            except Exception as error:
                errors.append(repr(error))
        if entries := [span for span in spans if _is_entry(span)]:
            break
    if errors:
        yield Finding("request_failed", f"GET {request.path} raised {errors[0]}", "see why", note=True)
    yield from _judged(entries, trace_id, reads[0])


def _judged(entries: list[Any], trace_id: int, format: str) -> Iterator[Finding]:
    if not entries:
        served = sorted({*tracefill.installed(), *_waiting()} & set(_SERVERS))
        yield Finding(
            "span_missing",
            "a request to the application makes no span: the trace that it brings ends here"
            + (f"; tracefill makes one where {', '.join(served)} serves it" if served else ""),
            "switch on tracefill's integration, or put its middleware around the application",
            "tracefill.install()",
            note=bool(served),
        )
    continued = [span for span in entries if span.context.trace_id == trace_id]
    if entries and not continued:
        yield Finding(
            "not_extracted",
            f"a request that brings {format} headers begins a new trace ({_scopes(entries)})",
            "let an instrumentation extract them",
            "tracefill.install()",
            {"format": format},
        )
    if len(entries) > 1:
        yield Finding(
            "instrumented_twice",
            f"one request makes {len(entries)} server spans: {_scopes(entries)}",
            "take one of the instrumentations away",
            evidence={"spans": [[span.instrumentation_scope.name, span.name] for span in entries]},
        )


def _scopes(spans: list[Any]) -> str:
    return ", ".join(f"{span.instrumentation_scope.name} {span.name!r}" for span in spans)


def _waiting() -> list[str]:
    from tracefill.audit.doctor.integrations import waiting

    return waiting()


def _is_entry(span: Any) -> bool:
    """A server span, or what contrib makes of the second one of a request: an internal span with the same attributes."""
    from opentelemetry.trace import SpanKind

    told = span.attributes or {}
    if span.kind is SpanKind.SERVER:
        return True
    return span.kind is SpanKind.INTERNAL and ("http.method" in told or "http.request.method" in told)


@contextmanager
def _kept(provider: Any) -> Iterator[list[Any]]:
    """The spans that end while it is open; they go nowhere else."""
    from opentelemetry.sdk.trace import SpanProcessor

    ended: list[Any] = []

    class Keep(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended.append(span)

    multi = provider._active_span_processor
    before = multi._span_processors
    multi._span_processors = (Keep(),)
    try:
        yield ended
    finally:
        multi._span_processors = before


# --- the request ---


def _allowed_host() -> str:
    settings: Any = getattr(sys.modules.get("django.conf"), "settings", None)
    if not getattr(settings, "configured", False):
        return "localhost"
    return next((host.lstrip(".") for host in settings.ALLOWED_HOSTS if host != "*"), "localhost")


def _shape(app: Any) -> str | None:
    if not callable(app):
        return None
    call = app if inspect.isroutine(app) else type(app).__call__
    if inspect.iscoroutinefunction(inspect.unwrap(call)):
        return "asgi"
    try:
        inspect.signature(app).bind({}, None)
    except (TypeError, ValueError):
        return "asgi" if _takes_three(app) else None
    return "wsgi"


def _takes_three(app: Any) -> bool:
    try:
        inspect.signature(app).bind({}, None, None)
    except (TypeError, ValueError):
        return False
    return True


def _send(shape: str, app: Any, path: str, headers: dict[str, str]) -> None:
    if shape == "asgi":
        asyncio.run(asyncio.wait_for(_asgi(app, path, headers), TIMEOUT_S))
    else:
        _wsgi(app, path, headers)


def _wsgi(app: Any, path: str, headers: dict[str, str]) -> None:
    from wsgiref.util import setup_testing_defaults

    environ: dict[str, Any] = {"PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1", "wsgi.input": io.BytesIO()}
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    setup_testing_defaults(environ)
    body = app(environ, lambda status, headers, error=None: lambda data: None)
    try:
        for _ in body:
            pass
    finally:
        getattr(body, "close", lambda: None)()


async def _asgi(app: Any, path: str, headers: dict[str, str]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": pairs,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    ended = asyncio.Event()
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    await app(scope, receive, send)
