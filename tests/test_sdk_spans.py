"""Spans that are started and ended here against those that the SDK starts and ends itself: the same in everything that anybody
can see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

import tracefill
from tracefill import sdk_spans
from tracefill._codec import SpanStart

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


class Counting(IdGenerator):
    """Ids that say in which order they were asked for."""

    def __init__(self, is_random: bool) -> None:
        self.asked = 0
        self.is_random = is_random

    def generate_trace_id(self) -> int:
        self.asked += 1
        return self.asked

    generate_span_id = generate_trace_id

    def is_trace_id_random(self) -> bool:
        return self.is_random


class Adding(Sampler):
    """A sampler that looks at what it is asked, adds an attribute and changes the tracestate."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *rest: Any, **named: Any) -> SamplingResult:
        asked = f"{parent_context} {trace_id} {name} {rest} {named}"
        return SamplingResult(self.decision, {"asked": asked}, TraceState([("sampler", "yes")]))

    def get_description(self) -> str:
        return "Adding"


class Watching(SpanProcessor):
    """What processors are told, and what they see of a span when it starts."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.seen.append(("start", timeless(span), span.is_recording(), parent_context))

    def _on_ending(self, span: Any) -> None:
        span.set_attribute("ending", True)  # too late
        self.seen.append(("ending", timeless(span)))

    def on_end(self, span: Any) -> None:
        self.seen.append(("end", timeless(span), type(span), sorted(vars(span)), span.end_time >= span.start_time))


def timeless(span: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(span.to_json())
    return {name: value for name, value in said.items() if name not in ("start_time", "end_time")}


def held(span_id: int = SPAN, flags: int = 1, *, remote: bool = True, state: str = "") -> SpanContext:
    return SpanContext(TRACE, span_id, remote, TraceFlags(flags), TraceState.from_header([state]) if state else None)


def under(context: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


PARENTS = {
    "none": Context(),
    "remote": under(held()),
    "remote-random-state": under(held(flags=3, state="a=1,b=2")),
    "remote-unsampled": under(held(flags=0)),
    "local": under(held(remote=False)),
    "local-unsampled": under(held(flags=2, remote=False)),
    "invalid": under(SpanContext(TRACE, 0, True)),
    "baggage": baggage.set_baggage("k", "v", under(held())),
    "ours": tracefill.extract(
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"}
    ),
    "no-span": trace.set_span_in_context("nonsense", Context()),  # type: ignore[arg-type]
}
SAMPLERS = {
    "default": ParentBased(ALWAYS_ON),
    "on": ALWAYS_ON,
    "off": ALWAYS_OFF,
    "ratio": ParentBased(TraceIdRatioBased(0.5)),
    "record-only": StaticSampler(Decision.RECORD_ONLY),
    "adding": Adding(Decision.RECORD_AND_SAMPLE),
    "adding-to-dropped": Adding(Decision.DROP),
    "remote-asked": ParentBased(ALWAYS_OFF, remote_parent_sampled=Adding(Decision.RECORD_AND_SAMPLE)),
    "local-dropped": ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON),
}


def both(
    sampler: Sampler, limits: SpanLimits | None = None, *, is_random: bool = True, watched: bool = True
) -> list[tuple[Any, Watching]]:
    """The SDK's way to start a span and ours, each with a tracer of its own, and what its processor hears."""
    found = []
    for way in (sdk_way, sdk_spans.starter):
        watching = Watching()
        provider = TracerProvider(
            sampler=sampler,
            id_generator=Counting(is_random),
            span_limits=limits or SpanLimits(),
            shutdown_on_exit=False,
        )
        if watched:
            provider.add_span_processor(watching)
        found.append((way(provider.get_tracer("test", "1")), watching))
    assert type(found[1][0]) is SpanStart
    return found


def sdk_way(tracer: Any) -> Any:
    return lambda *arguments: tracer.start_span(*arguments, record_exception=False)


def assert_same(ways: list[tuple[Any, Watching]], *arguments: Any) -> None:
    spans = [start("name", *arguments) for start, _ in ways]
    theirs, ours = spans
    assert type(ours) is type(theirs)
    assert ours.get_span_context() == theirs.get_span_context()
    assert ours.get_span_context().trace_flags.__class__ is TraceFlags
    if theirs.is_recording():
        assert set(vars(ours)) == set(vars(theirs))
    for span, end in zip(spans, (type(theirs).end, sdk_spans.end_span), strict=True):
        span.set_attribute("later", "value")
        span.add_event("event", {"a": 1}, timestamp=3)
        span.add_link(held(7))
        span.set_status(Status(StatusCode.ERROR, "late"))
        end(span)
        span.set_attribute("too late", 1)
        end(span)  # once more: a warning
    assert ways[0][1].seen == ways[1][1].seen


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("is_random", [True, False], ids=["random", "not-random"])
def test_every_parent_under_every_sampler(sampler: str, parent: str, is_random: bool) -> None:
    ways = both(SAMPLERS[sampler], is_random=is_random)
    for attributes in (None, {}, {"a": "b", "n": 1}):
        assert_same(ways, PARENTS[parent], SpanKind.CLIENT, attributes, (), None)


@pytest.mark.parametrize("parent", PARENTS)
def test_the_current_context(parent: str) -> None:
    with tracefill.context.scope(PARENTS[parent]):
        assert_same(both(ParentBased(ALWAYS_ON)), None, SpanKind.SERVER, {"a": 1}, (), None)


values = st.one_of(
    st.text(max_size=12),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.none(),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    st.just(object),
)


@given(
    attributes=st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), values, max_size=8),
    most=st.sampled_from([None, 0, 1, 5, 128]),
    longest=st.sampled_from([None, 0, 3]),
)
def test_any_attributes_and_limits(attributes: Any, most: int | None, longest: int | None) -> None:
    limits = SpanLimits(
        max_span_attributes=SpanLimits.UNSET if most is None else most,
        max_span_attribute_length=SpanLimits.UNSET if longest is None else longest,
        max_events=2,
        max_links=1,
    )
    start_theirs, start_ours = (start for start, _ in both(ParentBased(ALWAYS_ON), limits, watched=False))
    given = dict(attributes)
    theirs, ours = (
        start("name", Context(), SpanKind.INTERNAL, given, (), None) for start in (start_theirs, start_ours)
    )
    assert dict(ours.attributes) == dict(theirs.attributes)
    assert [type(value) for value in ours.attributes.values()] == [type(value) for value in theirs.attributes.values()]
    assert ours.dropped_attributes == theirs.dropped_attributes
    ours.set_attribute("x", 1)
    assert given == attributes, "the caller's own dict is not the span's"


def test_links_are_those_that_are_valid() -> None:
    links = [Link(held(3), {"a": 1}), Link(SpanContext(0, 0, True)), Link(held(4, state="a=1"))]
    assert_same(both(ALWAYS_ON, SpanLimits(max_links=2)), Context(), SpanKind.CONSUMER, None, links, None)


def test_a_start_time_of_the_past() -> None:
    _, (start, _) = both(ALWAYS_ON)
    assert start("name", Context(), SpanKind.INTERNAL, None, (), 17).start_time == 17
    span = start("name", Context(), SpanKind.INTERNAL, None, (), None)
    span.end()
    assert 17 < span.start_time <= span.end_time


def test_exceptions_do_not_end_up_on_it_by_themselves() -> None:
    _, (start, _) = both(ALWAYS_ON)
    span = start("name", Context(), SpanKind.INTERNAL, None, (), None)
    with pytest.raises(RuntimeError), trace.use_span(span, record_exception=False):
        raise RuntimeError
    assert not span.events


def test_a_tracer_that_is_switched_off_records_nothing() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("test")
    start = sdk_spans.starter(tracer)
    tracer._tracer_config = type(tracer._tracer_config)(is_enabled=False)
    assert not start("name", Context(), SpanKind.INTERNAL, None, (), None).is_recording()


def test_the_metrics_of_the_sdk_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    provider = TracerProvider(shutdown_on_exit=False, meter_provider=meters)
    start = sdk_spans.starter(provider.get_tracer("test"))
    start("name", Context(), SpanKind.INTERNAL, None, (), None).end()
    found = reader.get_metrics_data()
    assert found is not None
    counted = {
        metric.name: sum(point.value for point in metric.data.data_points)  # type: ignore[union-attr]
        for metric in found.resource_metrics[0].scope_metrics[0].metrics
    }
    assert counted == {"otel.sdk.span.started": 1, "otel.sdk.span.live": 0}


@pytest.mark.parametrize("where", ["tracer", "span", "list"])
def test_what_somebody_has_replaced_is_called(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sdk_spans._parts()
    owner, name = {
        "tracer": (Tracer, "start_span"),
        "span": (parts.Span, "start"),
        "list": (parts.BoundedList, "__init__"),
    }[where]
    original = getattr(owner, name)
    called = []

    def replaced(*arguments: Any, **named: Any) -> Any:
        called.append(name)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, replaced)
    start = sdk_spans.starter(TracerProvider(shutdown_on_exit=False).get_tracer("test"))
    assert start("name", Context(), SpanKind.INTERNAL, {"a": 1}, (), None).is_recording()
    assert called


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_context_of_a_class_of_its_own(is_asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Context):
        pass

    class Asked(Context):
        def span_above(self) -> Any:
            return NonRecordingSpan(held(8))

    [_, (start, watching)] = both(ALWAYS_ON)
    called = []
    monkeypatch.setattr(sdk_spans._parts().Span, "start", lambda *given, **named: called.append(given))
    context = (Asked if is_asked else Plain)(under(held(7)))
    span = start("name", context, SpanKind.INTERNAL, {"a": 1}, (), None)
    assert span.parent == held(8 if is_asked else 7)
    assert bool(called) is not is_asked
    assert [seen[-1] for seen in watching.seen] == [context] * is_asked


def test_an_sdk_that_nobody_has_compared_starts_its_spans_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk_spans, "_KNOWN", frozenset())
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    start = sdk_spans.starter(tracer)
    assert type(start) is not SpanStart
    assert start("name", Context(), SpanKind.INTERNAL, {"a": 1}, (), None).attributes == {"a": 1}


def a_span() -> tuple[Any, Watching]:
    [_, (start, watching)] = both(ALWAYS_ON)
    return start("name", Context(), SpanKind.INTERNAL, {"a": 1}, (), None), watching


def test_an_end_time_of_the_past() -> None:
    span, watching = a_span()
    sdk_spans.end_span(span, span.start_time)
    assert span.end_time == span.start_time
    assert [seen[0] for seen in watching.seen] == ["start", "ending", "end"]


def test_ending_takes_no_call_of_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    span, watching = a_span()
    monkeypatch.setattr(sdk_spans._parts().ReadableSpan, "__init__", None)
    sdk_spans.end_span(span)
    assert watching.seen[-1][0] == "end"


def test_ending_twice_is_warned_of_as_by_the_sdk(caplog: pytest.LogCaptureFixture) -> None:
    span, watching = a_span()
    sdk_spans.end_span(span)
    first = span.end_time
    caplog.clear()
    sdk_spans.end_span(span)
    assert [record.getMessage() for record in caplog.records] == ["Calling end() on an ended span."]
    assert span.end_time == first
    assert [seen[0] for seen in watching.seen] == ["start", "ending", "end"]


def test_an_end_that_somebody_has_put_on_the_span_or_its_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for on_class in (True, False):
        span, watching = a_span()
        called: list[Any] = []
        monkeypatch.setattr(type(span) if on_class else span, "end", lambda *given, to=called: to.append(given))
        sdk_spans.end_span(span, 7)
        assert called == [(span, 7) if on_class else (7,)]
        assert [seen[0] for seen in watching.seen] == ["start"]


def test_spans_of_others_are_ended_by_themselves() -> None:
    class Theirs(NonRecordingSpan):
        ended: Any = None

        def end(self, end_time: int | None = None) -> None:
            self.ended = end_time

    span = Theirs(held())
    sdk_spans.end_span(span, 7)
    assert span.ended == 7


def test_what_ends_is_counted_and_cannot_be_changed_any_more() -> None:
    [_, (start, _)] = both(ALWAYS_ON)
    span = start("name", Context(), SpanKind.INTERNAL, {"a": 1}, (), None)
    counted: list[int] = []
    span._record_end_metrics = lambda: counted.append(1)
    sdk_spans.end_span(span)
    assert counted == [1]
    with pytest.raises(TypeError):
        span._attributes["b"] = 2


def test_without_an_sdk_there_is_no_span() -> None:
    start = sdk_spans.starter(trace.NoOpTracer())
    assert not start("name", Context(), SpanKind.INTERNAL, {"a": 1}, (), None).is_recording()
