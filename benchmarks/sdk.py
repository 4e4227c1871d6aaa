"""The SDK that rows with spans run on: one in the process, as in a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

__all__ = ["ended_spans", "provider"]


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
