"""Starting and ending the SDK's spans at a quarter of its price.

`start_span` of the SDK takes some thirty calls for a span, and two more for each attribute. The compiled core takes their
steps without those calls: the same sampler, id generator, limits and processors are asked, and what comes out is a span of the
SDK's own class that holds the same. `end` hands a copy of the span to the processors; `end_span` makes it without its constructor.
Where the SDK is another than those that were compared, or somebody has replaced one of the functions, its own are called.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import time_ns
from types import FunctionType, SimpleNamespace
from typing import Any

from opentelemetry.trace import INVALID_SPAN_CONTEXT, Span, Status, StatusCode

from tracefill._codec import SpanStart

__all__ = ["end_span", "starter"]

# What `fingerprint()` says of the SDKs whose steps SpanStart and `end_span` take: those of 1.45.
_KNOWN = frozenset(("52db606f65169dc3",))
_KNOWN_ENDS = frozenset(("da317e6a0eebd307",))

# Of the SDK, once a tracer of its was met: its span, what its processors are handed in the end, and `end` of the one.
_span: Any = None
_ended_span: Any = None
_end: Any = None


def starter(tracer: Any) -> Callable[..., Span]:
    """What starts the spans of this tracer: called with (name, context, kind, attributes, links, start_time_ns)."""
    global _span, _ended_span, _end
    parts = _parts_of(type(tracer))
    if parts is None or "start_span" in vars(tracer) or not _is_alike(tracer, parts):
        return partial(tracer.start_span, record_exception=False)
    if fingerprint(parts.Span.end, parts.Span._readable_span) in _KNOWN_ENDS:
        _span, _ended_span, _end = parts.Span, parts.ReadableSpan, parts.Span.end
    return SpanStart(tracer, parts)


def end_span(span: Any, end_time_ns: int | None = None) -> None:
    """`span.end(end_time_ns)`."""
    end = span.end
    if type(span) is not _span or getattr(end, "__func__", None) is not _end:
        end(end_time_ns)
        return
    with span._lock:
        is_running = span._end_time is None and span._start_time is not None
        if is_running:
            span._end_time = time_ns() if end_time_ns is None else end_time_ns
            span._attributes._immutable = True
    if not is_running:
        end(end_time_ns)  # which says what is wrong
        return
    if span._record_end_metrics:
        span._record_end_metrics()
    processor = span._span_processor
    processor._on_ending(span)
    ended = object.__new__(_ended_span)
    ended._name = span._name
    ended._context = span._context
    ended._kind = span._kind
    ended._instrumentation_info = span._instrumentation_info
    ended._instrumentation_scope = span._instrumentation_scope
    ended._parent = span._parent
    ended._start_time = span._start_time
    ended._end_time = span._end_time
    ended._attributes = span._attributes
    ended._events = span._events
    ended._links = span._links
    ended._resource = span._resource
    ended._status = span._status
    processor.on_end(ended)


def _parts_of(tracer: type) -> SimpleNamespace | None:
    """The SDK's classes that make up a span; None where SpanStart does not know them."""
    if (tracer.__module__, tracer.__name__) != ("opentelemetry.sdk.trace", "Tracer"):
        return None
    try:
        parts = _parts()
        return parts if fingerprint(*_functions(parts, tracer)) in _KNOWN else None
    except (ImportError, AttributeError):  # an SDK that has other parts
        return None


def _parts() -> SimpleNamespace:
    from opentelemetry.attributes import BoundedAttributes
    from opentelemetry.sdk.trace import ReadableSpan, _Span
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, SamplingResult, StaticSampler
    from opentelemetry.sdk.util import BoundedList

    return SimpleNamespace(
        Span=_Span,
        ReadableSpan=ReadableSpan,
        BoundedAttributes=BoundedAttributes,
        BoundedList=BoundedList,
        ParentBased=ParentBased,
        SamplingResult=SamplingResult,
        StaticSampler=StaticSampler,
        RECORD_AND_SAMPLE=Decision.RECORD_AND_SAMPLE,
        DROP=Decision.DROP,
        UNSET=Status(StatusCode.UNSET),
        Lock=threading.Lock,
        deque=deque,
        time_ns=time_ns,
    )


def _functions(parts: SimpleNamespace, tracer: Any) -> tuple[Any, ...]:
    """Those whose work SpanStart does."""
    return (
        tracer.start_span,
        tracer._is_enabled,
        parts.Span.__init__,
        parts.Span.start,
        parts.Span._new_events,
        parts.Span._new_links,
        parts.ReadableSpan.__init__,
        parts.BoundedAttributes.__init__,
        parts.BoundedAttributes._set_items,
        parts.BoundedList.__init__,
        parts.ParentBased.should_sample,
        parts.StaticSampler.should_sample,
        parts.SamplingResult.__init__,
    )


def fingerprint(*functions: Any) -> str:
    """Of functions of the SDK: their parameters, and the names they use. "" where one has been replaced by something else."""
    if not all(isinstance(function, FunctionType) for function in functions):
        return ""
    said = [(f.__qualname__, list(inspect.signature(f).parameters), sorted(f.__code__.co_names)) for f in functions]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _is_alike(tracer: Any, parts: SimpleNamespace) -> bool:
    """True when a span that the SDK's constructor makes has the same attributes, of the same types."""
    theirs = parts.Span("", INVALID_SPAN_CONTEXT, resource=tracer.resource, limits=tracer._span_limits)
    return _shape(SpanStart(tracer, parts).unstarted()) == _shape(theirs)


def _shape(span: Any) -> list[Any]:
    held = [vars(part) for part in (span._attributes, span._events, span._links)]
    return [type(span), set(vars(span)), [{name: type(value) for name, value in part.items()} for part in held]]
