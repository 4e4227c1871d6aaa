"""The callers: two storefronts that trace their calls themselves, and a guest with bad headers.

The storefront speaks W3C and comes from outside, like the guest; the legacy one speaks B3 from inside, past nginx. They are
the same in every run: the SDK and stock propagators, nothing of tracefill.
"""

from __future__ import annotations

import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Span, SpanKind, format_span_id, format_trace_id

from tracefill.demo.system import System

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
TENANT = {"X-Tenant-ID": "acme"}

# Nobody's proxy is asked for the way to our own machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def send(system: System, folder: Path, count: int) -> Iterator[int]:
    """Places `count` orders of each caller; yields how many have been placed so far."""
    doors = {"storefront": system.entrance, "legacy-storefront": system.gateway}
    providers = {name: _provider(name, folder) for name in STOREFRONTS}
    placed = 0
    for number in range(count):
        for name, headers in STOREFRONTS.items():
            attributes = {"server.address": "127.0.0.1", "http.request.method": "POST", "peer.service": "gateway"}
            tracer = providers[name].get_tracer("storefront")
            with tracer.start_as_current_span("POST", kind=SpanKind.CLIENT, attributes=attributes) as span:
                _post(f"{doors[name]}/orders/{name}-{number}", headers(span))
            placed += 1
        _post(f"{system.entrance}/guest-orders/guest-{number}", BAD_HEADERS[number % len(BAD_HEADERS)])
        placed += 1
        yield placed
    for provider in providers.values():
        provider.shutdown()


def _provider(name: str, folder: Path) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": name, "service.instance.id": "1"}))
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(str(folder / f"{name}.jsonl"))))
    return provider


def _post(url: str, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, data=b"", headers=headers | TENANT, method="POST")
    with _open(request, timeout=45) as answer:
        answer.read()


def arrived(system: System, count: int) -> Iterator[int]:
    """Yields how many rows stand in the tables of the database, until `count` do in each or time is up."""
    until = time.monotonic() + ARRIVAL_SECONDS
    everything = " + ".join(f"(select count(*) from {table})" for table in system.tables)
    connection = sqlite3.connect(system.database, timeout=10)
    try:
        while True:
            (found,) = connection.execute(f"select {everything}").fetchone()
            yield found
            if found >= count * len(system.tables) or time.monotonic() > until:
                return
            time.sleep(0.1)
    finally:
        connection.close()
