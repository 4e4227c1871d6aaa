"""The one place where integrations open spans.

    _tracer = Tracer("tracefill.calls.requests")

    with _tracer.scope("GET", "client", attributes={"http.request.method": "GET"}) as span:
        ...

A span is built only when somebody may record it: where the parent says no and the sampler is parent-based, the scope is
nothing but the context made current, and `attributes` (which may be a function) are never collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind, Status, StatusCode

from tracefill import _codec
from tracefill.sdk_spans import end_span, starter

__all__ = ["SpanScope", "Tracer", "link_to", "suppressed"]

Attributes = Mapping[str, Any]
AttributesOrMaker = Attributes | Callable[[], Attributes] | None

_KINDS = {kind.name.lower(): kind for kind in SpanKind}


class Tracer(_codec.Gate):
    """The tracer of one integration, named after its module.

    Follows the global TracerProvider, whenever that is set. `records(context=None)`, of the compiled core, is False when a span
    begun in this context (default: of now) is sure to be dropped, or instrumentation is suppressed.
    """

    __slots__ = ("_provider", "_start", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._provider: object = None
        self._start: Any = None

    def meet(self, provider: object) -> bool:
        """There is another provider now. True when its sampler never records a span whose parent says no."""
        from tracefill import __version__

        self._start = starter(trace.get_tracer(self.name, __version__))
        self._provider = provider
        return _follows_parent(provider)

    def start(
        self,
        name: str,
        kind: str = "internal",
        context: Context | None = None,
        attributes: AttributesOrMaker = None,
        links: Sequence[Link] = (),
        start_time_ns: int | None = None,
    ) -> Span:
        """A started span that is not current; INVALID_SPAN's like where nobody would record it. The caller ends it."""
        if not self.records(context):
            return trace.get_current_span(context) if context is not None else INVALID_SPAN
        if callable(attributes):
            attributes = attributes()
        return self.begin(name, kind, context, attributes, links, start_time_ns)

    def begin(
        self,
        name: str,
        kind: str,
        context: Context | None,
        attributes: Attributes | None,
        links: Sequence[Link] = (),
        start_time_ns: int | None = None,
    ) -> Span:
        """As `start`, for who has just asked `records()` and was told yes."""
        span: Span = self._start(name, context, _KINDS[kind], attributes, links, start_time_ns)
        return span

    def scope(
        self,
        name: str,
        kind: str = "internal",
        context: Context | None = None,
        attributes: AttributesOrMaker = None,
        links: Sequence[Link] = (),
        start_time_ns: int | None = None,
    ) -> SpanScope:
        """A context manager: a span of this name, current inside, ended at the end. An exception of the user's is recorded
        on the span and goes on untouched."""
        return SpanScope(self, name, kind, context, attributes, links, start_time_ns)


class SpanScope:
    """See `Tracer.scope`. `span` is the span while the scope is open."""

    __slots__ = ("_arguments", "_scope", "_tracer", "span")

    def __init__(self, tracer: Tracer, *arguments: Any) -> None:
        self._tracer = tracer
        self._arguments = arguments
        self.span: Span = INVALID_SPAN
        self._scope: Any = None

    def __enter__(self) -> Span:
        name, kind, context, attributes, links, start_time_ns = self._arguments
        if self._tracer.records(context):
            if callable(attributes):
                attributes = attributes()
            self.span = self._tracer.begin(name, kind, context, attributes, links, start_time_ns)
            self._scope = _codec.enter_scope(_codec.with_span(context, self.span))
        elif context is not None:
            self._scope = _codec.enter_scope(context)
        return self.span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is not None:
            self._scope.close()
        if self.span is not INVALID_SPAN:
            if error is not None:
                record(self.span, error)
            end_span(self.span)


def record(span: Span, error: BaseException) -> None:
    """An exception of the user's on the span: an event and the status ERROR. Leaving (SystemExit, a closed generator, a
    cancelled task) is no error."""
    if isinstance(error, Exception) and span.is_recording():
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def link_to(context: Context) -> list[Link]:
    """A link to the span of a context, for a span that is not its child; no link where there is no valid span."""
    held: SpanContext = trace.get_current_span(context).get_span_context()
    return [Link(held)] if held.is_valid else []


def suppressed(context: Context | None = None) -> bool:
    """True while OpenTelemetry asks instrumentations to keep quiet (exporters do, about their own requests)."""
    return bool(_codec.state_of(context) & _codec.SUPPRESSED)


def _follows_parent(provider: Any) -> bool:
    """True when the provider's sampler never records a span whose parent says no: the SDK's default, and no SDK at all."""
    sampler = getattr(provider, "sampler", None)
    if sampler is None:
        return False
    names = [
        type(getattr(sampler, part, None)).__name__
        for part in ("_local_parent_not_sampled", "_remote_parent_not_sampled")
    ]
    return type(sampler).__name__ == "ParentBased" and all(
        name == "StaticSampler" and "AlwaysOff" in getattr(sampler, part).get_description()
        for name, part in zip(names, ("_local_parent_not_sampled", "_remote_parent_not_sampled"), strict=True)
    )
