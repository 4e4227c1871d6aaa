"""The callers: two storefronts that trace their calls themselves, by W3C and by B3, and a stranger with bad headers.

They are the same in every run: the SDK and stock propagators, nothing of tracefill.
"""

from __future__ import annotations

import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Span, SpanKind, format_span_id, format_trace_id

ARRIVAL_SECONDS = 20

# What comes from outside, and must neither break a request nor reach a trace.
BAD_HEADERS = (
    {"traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"},
    {"traceparent": "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01"},
    {"traceparent": "x" * 4000, "tracestate": "=,=,="},
    {"b3": "not-a-trace", "baggage": "%%%;;;==="},
)


def w3c(span: Span) -> dict[str, str]:
    held = span.get_span_context()
    return {"traceparent": f"00-{format_trace_id(held.trace_id)}-{format_span_id(held.span_id)}-01"}


def b3(span: Span) -> dict[str, str]:
    held = span.get_span_context()
    return {
        "X-B3-TraceId": format_trace_id(held.trace_id),
        "X-B3-SpanId": format_span_id(held.span_id),
        "X-B3-Sampled": "1",
    }


STOREFRONTS: dict[str, Callable[[Span], dict[str, str]]] = {"storefront": w3c, "legacy-storefront": b3}


def send(gateway: str, folder: Path, count: int) -> Iterator[int]:
    """Places `count` orders of each caller; yields how many have been placed so far."""
    from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter

    providers = {}
    for name in STOREFRONTS:
        providers[name] = TracerProvider(resource=Resource({"service.name": name, "service.instance.id": "1"}))
        providers[name].add_span_processor(SimpleSpanProcessor(FileSpanExporter(str(folder / f"{name}.jsonl"))))
    placed = 0
    for number in range(count):
        for name, headers in STOREFRONTS.items():
            order_no = f"{name}-{number}"
            attributes = {"server.address": "127.0.0.1", "http.request.method": "POST", "peer.service": "gateway"}
            tracer = providers[name].get_tracer("storefront")
            with tracer.start_as_current_span("POST", kind=SpanKind.CLIENT, attributes=attributes) as span:
                _post(f"{gateway}/orders/{order_no}", headers(span))
            placed += 1
        _post(f"{gateway}/orders/stranger-{number}", BAD_HEADERS[number % len(BAD_HEADERS)])
        placed += 1
        yield placed
    for provider in providers.values():
        provider.shutdown()


def _post(url: str, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, data=b"", headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=15) as answer:
        answer.read()


def arrived(database: Path, count: int) -> Iterator[int]:
    """Yields how many orders and reminders stand in the database, until all do or time is up."""
    until = time.monotonic() + ARRIVAL_SECONDS
    connection = sqlite3.connect(database, timeout=10)
    try:
        while True:
            (found,) = connection.execute(
                "select (select count(*) from orders) + (select count(*) from reminders)"
            ).fetchone()
            yield found
            if found >= count or time.monotonic() > until:
                return
            time.sleep(0.1)
    finally:
        connection.close()
