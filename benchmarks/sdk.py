"""The SDK that rows with spans run on: one in the process, as in a service. And what one of its spans costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

from benchmarks.timing import Case
from tracefill.context import extract
from tracefill.sdk_spans import starter

__all__ = ["cases", "ended_spans", "provider"]

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTRIBUTES = {
    "http.request.method": "GET", "url.scheme": "http", "url.path": "/orders/7", "server.address": "shop.example.com",
    "server.port": 8080, "client.address": "10.1.2.3", "user_agent.original": "curl/8.5.0", "network.protocol.version": "1.1",
}  # fmt: skip


class NoEntries(Sampler):
    """Drops traces that begin at a server, keeps the others: so that one process has sampled and unsampled ones."""

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, *rest: Any, **named: Any
    ) -> SamplingResult:
        asked = ALWAYS_OFF if kind is SpanKind.SERVER else ALWAYS_ON
        return asked.should_sample(parent_context, trace_id, name, kind, *rest, **named)

    def get_description(self) -> str:
        return "NoEntries"


def provider() -> TracerProvider:
    """The global provider, made by the first who asks."""
    found = trace.get_tracer_provider()
    if not isinstance(found, TracerProvider):
        trace.set_tracer_provider(TracerProvider(sampler=ParentBased(NoEntries())))
        found = trace.get_tracer_provider()
    assert isinstance(found, TracerProvider)
    return found


@contextmanager
def ended_spans() -> Iterator[list[ReadableSpan]]:
    """The spans that end inside, for checks. The SDK lets nobody take a processor off again, and one that stays is timed."""
    found: list[ReadableSpan] = []

    class Listening(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            found.append(span)

    processors = provider()._active_span_processor
    kept = processors._span_processors
    processors._span_processors = (*kept, Listening())
    try:
        yield found
    finally:
        processors._span_processors = kept


def cases() -> list[Case]:
    tracer = provider().get_tracer("bench")
    start = starter(tracer)
    context = extract({"traceparent": TRACEPARENT})

    def stock_span(attributes: dict[str, Any] | None) -> Any:
        span = tracer.start_span("GET", context, SpanKind.SERVER, attributes, record_exception=False)
        span.end()
        return span

    def our_span(attributes: dict[str, Any] | None) -> Any:
        span = start("GET", context, SpanKind.SERVER, attributes, (), None)
        span.end()
        return span

    return [
        Case(
            f"an SDK span {what}, started and ended",
            "stock(attributes)",
            "ours(attributes)",
            {"stock": stock_span, "ours": our_span, "attributes": attributes},
            lambda stock, ours: type(stock) is type(ours) and dict(stock.attributes) == dict(ours.attributes),
            least,
        )
        for what, attributes, least in (("of no attributes", None, 2), ("of 8 attributes", ATTRIBUTES, 3))
    ]
