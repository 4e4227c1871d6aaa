"""A service behind a gateway, as ASGI and as WSGI application, that tells what it would send on and what its spans say.

uvicorn tests.gateway.hostile_service:asgi_app
gunicorn tests.gateway.hostile_service:wsgi_app
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import tracefill
from tracefill import tags
from tracefill.calls import asgi as calls_asgi
from tracefill.calls import wsgi as calls_wsgi
from tracefill.context import current
from tracefill.gateway import asgi as gateway_asgi
from tracefill.gateway import logs
from tracefill.gateway import wsgi as gateway_wsgi
from tracefill.tags import Tag

TRUSTED = os.environ.get("HOSTILE_TRUSTED") == "1"

_exporter = InMemorySpanExporter()
_provider = TracerProvider()
_provider.add_span_processor(SimpleSpanProcessor(_exporter))
trace.set_tracer_provider(_provider)

tags.declare(Tag("tenant_id", header="x-tenant-id", path="/{tenant_id}", baggage=True))

_logger = logging.getLogger("hostile")
_handler = logging.FileHandler(os.environ["HOSTILE_LOG"])
_handler.addFilter(logs.ContextFilter())
_handler.setFormatter(logging.Formatter("%(request_id)s [%(tenant_id)s] served"))
_logger.addHandler(_handler)
_logger.setLevel(logging.INFO)


def answer() -> bytes:
    """What this service would send to the next one, and the longest things that its spans have said so far."""
    _logger.info("served")
    sent: dict[str, str] = {}
    tags.inject(sent, current(), "next")
    said = [value for span in _exporter.get_finished_spans() for value in (span.attributes or {}).values()]
    texts = [str(part) for value in said for part in (value if isinstance(value, tuple) else (value,))]
    return json.dumps({"sent": sent, "longest": max(map(len, texts), default=0)}).encode()


def _wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = answer()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    body = answer()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


wsgi_app = gateway_wsgi.Gateway(
    calls_wsgi.Middleware(_wsgi, request_headers=["x-request-id", "x-tenant-id"]), trusted=TRUSTED
)
asgi_app = gateway_asgi.Gateway(
    calls_asgi.Middleware(_asgi, request_headers=["x-request-id", "x-tenant-id"]), trusted=TRUSTED
)

assert tracefill.installed() == []
