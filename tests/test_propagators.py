"""The plug-ins as OpenTelemetry meets them: by entry point, by configuration, and by what they return."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tracefill.propagators import (
    B3MultiPropagator,
    B3Propagator,
    JaegerPropagator,
    OTTracePropagator,
    TraceContextPropagator,
    TracefillPropagator,
)

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HEADERS = {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"}
B3_IDS = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1"


def ours() -> Span:
    return trace.get_current_span(TraceContextPropagator().extract(HEADERS))


def stock() -> Span:
    return trace.get_current_span(TraceContextTextMapPropagator().extract(HEADERS))


def test_what_is_extracted_passes_for_the_stock_classes() -> None:
    span, held, other = ours(), ours().get_span_context(), stock().get_span_context()
    assert isinstance(span, NonRecordingSpan)
    assert isinstance(span, Span)
    assert type(held) is SpanContext
    assert held == other
    assert other == held
    assert isinstance(held.trace_flags, TraceFlags)
    assert isinstance(held.trace_state, TraceState)
    assert held.trace_state == other.trace_state
    assert repr(held) == repr(other)
    assert repr(span) == repr(stock())
    assert len({span, ours()}) == 2
    assert not span.is_recording()
    assert span.get_span_context() is span.get_span_context()


@pytest.mark.parametrize("clone", [lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy])
def test_spans_and_their_parts_can_be_copied(clone: Any) -> None:
    assert clone(ours()).get_span_context() == stock().get_span_context()
    assert clone(ours().get_span_context()) == stock().get_span_context()
    assert clone(ours().get_span_context().trace_state).to_header() == "a=1,b=2"


def test_a_trace_state_changes_like_stocks_and_holds_what_level_2_allows() -> None:
    mine, theirs = ours().get_span_context().trace_state, stock().get_span_context().trace_state
    for change in (
        lambda s: s.add("c", "3"),
        lambda s: s.update("b", "9"),
        lambda s: s.delete("a"),
        lambda s: s.add("a", "x"),
    ):
        assert change(mine).to_header() == change(theirs).to_header()
        assert change(mine) == change(theirs)
    assert mine.add("1a@b@c", "v").to_header() == "1a@b@c=v,a=1,b=2"
    assert mine.add("Bad", "v") is mine
    assert list(mine) == ["a", "b"]
    assert mine["a"] == "1"
    assert "z" not in mine
    assert bool(mine)


def test_the_stock_propagator_sends_what_ours_extracted_and_the_reverse() -> None:
    out: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(out, TraceContextPropagator().extract(HEADERS))
    assert out == HEADERS
    out.clear()
    TraceContextPropagator().inject(out, TraceContextTextMapPropagator().extract(HEADERS))
    assert out == HEADERS


@pytest.mark.parametrize("row", entry_points(group="opentelemetry_propagator"), ids=lambda row: row.name)
def test_every_entry_point_gives_a_propagator_of_its_own_class(row: Any) -> None:
    if row.name.startswith("tracefill"):
        made = row.load()()
        assert isinstance(made, TextMapPropagator)
        assert made.fields
        kinds = [r.load() for r in entry_points(group="opentelemetry_propagator") if r.name.startswith("tracefill")]
        assert len(set(kinds)) == len(kinds) == 9


def run(code: str, **variables: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_environment_variables_load_the_plug_ins() -> None:
    code = (
        "import opentelemetry.propagate as p; from opentelemetry import context;"
        "print(type(p.get_global_textmap()._propagators[0]).__name__, type(context._RUNTIME_CONTEXT).__name__)"
    )
    assert (
        run(code, OTEL_PROPAGATORS="tracefill", OTEL_PYTHON_CONTEXT="tracefill") == "TracefillPropagator RuntimeContext"
    )


def test_who_wants_no_propagator_has_none_and_is_served_all_the_same() -> None:
    code = (
        "import tracefill; from tracefill.calls import wsgi\n"
        "def app(environ, start_response): start_response('200 OK', []); return [b'served']\n"
        f"environ = {{'REQUEST_METHOD': 'GET', 'HTTP_TRACEPARENT': '00-{1:032x}-{1:016x}-01'}}\n"
        "headers = {}; context = tracefill.extract(environ); tracefill.inject(headers, context)\n"
        "print(context, headers, b''.join(wsgi.Middleware(app)(environ, lambda *_: None)))"
    )
    assert run(code, OTEL_PROPAGATORS="none") == "{} {} b'served'"


@pytest.mark.parametrize(
    ("name", "kind"), [("tracefill", "FastIdGenerator"), ("tracefill_time_ordered", "TimeOrderedIdGenerator")]
)
def test_the_sdk_takes_the_id_generators_by_name(name: str, kind: str) -> None:
    code = (
        "from opentelemetry.sdk._configuration import _initialize_components as i; i();"
        "from opentelemetry import trace; p = trace.get_tracer_provider();"
        "s = p.get_tracer('x').start_span('s').get_span_context(); print(type(p.id_generator).__name__, int(s.trace_flags))"
    )
    got = run(
        code,
        OTEL_PYTHON_ID_GENERATOR=name,
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert got == f"{kind} 3"


def test_declarative_configuration_builds_them_with_their_options(tmp_path: Any) -> None:
    pytest.importorskip("opentelemetry.configuration", reason="configuration files need an extra package")
    file = tmp_path / "otel.yaml"
    file.write_text(
        'file_format: "1.0"\npropagator:\n  composite:\n    - tracefill: {extract: [b3], inject: [b3multi], baggage: false}\n'
        "    - tracefill_jaeger:\n"
    )
    code = (
        "from opentelemetry.sdk._configuration import _OTelSDKConfigurator as c; c().configure();"
        "import opentelemetry.propagate as p; print(sorted(p.get_global_textmap().fields))"
    )
    out = run(code, OTEL_CONFIG_FILE=str(file), OTEL_EXPERIMENTAL_CONFIG_FILE=str(file))
    assert out == "['uber-trace-id', 'x-b3-flags', 'x-b3-sampled', 'x-b3-spanid', 'x-b3-traceid']"


def test_options_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match="expected one of tracecontext, b3"):
        TracefillPropagator(extract=["w3c"])
    with pytest.raises(ValueError, match="'accept' or 'deny'"):
        B3Propagator(defer="maybe")


@pytest.mark.parametrize(
    ("headers", "sampled"),
    [
        ({"b3": f"{B3_IDS}-1"}, True), ({"b3": f"{B3_IDS}-0"}, False), ({"b3": B3_IDS}, True), ({"b3": "0"}, False), ({"b3": "1"}, True),
        ({"X-B3-TraceId": B3_IDS[:32], "X-B3-SpanId": B3_IDS[33:]}, True), ({"X-B3-Sampled": "0"}, False), ({"x-b3-flags": "1"}, True),
        ({"uber-trace-id": "4bf92f3577b34da6a3ce929d0e0e4736:00f067aa0ba902b7:0:1"}, True),
        ({"X-Amzn-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"}, True),
        ({"x-datadog-trace-id": "123", "x-datadog-parent-id": "7", "x-datadog-sampling-priority": "-1"}, False),
    ],
)  # fmt: skip
def test_the_sdk_follows_the_decision_of_every_format(headers: dict[str, str], sampled: bool) -> None:
    span = TracerProvider().get_tracer("t").start_span("s", TracefillPropagator().extract(headers))
    assert span.get_span_context().trace_flags.sampled is sampled


def test_a_deferred_decision_can_be_taken_for_a_deny() -> None:
    found = B3Propagator(defer="deny").extract({"b3": B3_IDS})
    assert not trace.get_current_span(found).get_span_context().trace_flags.sampled
    out: dict[str, str] = {}
    B3Propagator().inject(out, found)
    assert out == {"b3": B3_IDS}


@pytest.mark.parametrize("header", ["0", "1", "d", f"{B3_IDS}-d", f"{B3_IDS}-0", B3_IDS])
def test_b3_is_passed_on_as_it_came_where_no_span_is_made(header: str) -> None:
    out: dict[str, str] = {}
    B3Propagator().inject(out, B3Propagator().extract({"b3": header}))
    assert out == {"b3": header}


@pytest.mark.parametrize("header", ["d", f"{B3_IDS}-d"])
def test_debug_stays_debug_below_spans_of_the_sdk(header: str) -> None:
    tracer = TracerProvider(sampler=ParentBased(TraceIdRatioBased(1))).get_tracer("t")
    context_in = B3Propagator().extract({"b3": header})
    span = tracer.start_span("a", context_in)
    child = tracer.start_span("b", trace.set_span_in_context(span, context_in))
    for propagator, name, want in (
        (B3Propagator(), "b3", "-d"),
        (B3MultiPropagator(), "x-b3-flags", "1"),
        (JaegerPropagator(), "uber-trace-id", ":3"),
    ):
        out: dict[str, str] = {}
        propagator.inject(out, trace.set_span_in_context(child, context_in))
        assert out[name].endswith(want)
        assert "x-b3-sampled" not in out


def test_a_valid_traceparent_beats_b3_and_an_invalid_one_does_not() -> None:
    both = {"traceparent": TRACEPARENT, "b3": f"{B3_IDS}-1"}
    assert trace.get_current_span(TracefillPropagator().extract(both)).get_span_context().span_id == 0x00F067AA0BA902B7
    both["traceparent"] = TRACEPARENT.upper()
    assert trace.get_current_span(TracefillPropagator().extract(both)).get_span_context().span_id == 0xE457B5A2E4D86BD1


def test_invalid_input_leaves_the_given_context_as_it_was() -> None:
    given = baggage.set_baggage("k", "v", Context())
    for propagator in (TracefillPropagator(), TraceContextPropagator(), B3Propagator(), JaegerPropagator()):
        assert propagator.extract({"traceparent": "x", "b3": "y", "uber-trace-id": "z"}, given) == given
        assert propagator.extract({}, given) is given


def test_baggage_alone_is_added_to_the_current_context() -> None:
    from tracefill.propagators import BaggagePropagator

    token = context.attach(baggage.set_baggage("k", "v"))
    try:
        assert dict(baggage.get_all(BaggagePropagator().extract({"baggage": "a=1"}))) == {"k": "v", "a": "1"}
    finally:
        context.detach(token)


@pytest.mark.parametrize(
    ("propagator", "header", "prefix", "sent"),
    [
        (
            JaegerPropagator(),
            {"Uber-Trace-Id": "4bf92f3577b34da6a3ce929d0e0e4736:00f067aa0ba902b7:0:1"},
            "Uberctx-",
            "a%20b",
        ),
        (
            OTTracePropagator(),
            {
                "OT-Tracer-TraceId": "64fe8b2a57d3eff7",
                "ot-tracer-spanid": "e457b5a2e4d86bd1",
                "ot-tracer-sampled": "true",
            },
            "OT-Baggage-",
            "a b",
        ),
    ],
    ids=["jaeger", "ottrace"],
)
def test_each_member_of_baggage_in_a_header_of_its_own(
    propagator: TextMapPropagator, header: dict[str, str], prefix: str, sent: str
) -> None:
    members = {f"{prefix}{name}": sent for name in ("user", "region")}
    there = {**header, "user-agent": "x", "origin": "y", **members}
    found = propagator.extract(there, Context())
    assert baggage.get_all(found) == {"user": "a b", "region": "a b"}
    assert trace.get_current_span(found).get_span_context().is_valid
    assert baggage.get_all(propagator.extract(members, Context())) == {}  # of no trace
    assert baggage.get_all(propagator.extract({**header, f"{prefix}big": "x" * 5000}, Context())) == {}
    carrier: dict[str, str] = {}
    propagator.inject(carrier, found)
    assert {name: carrier[name.lower()] for name in members} == members


def test_clearing_fields_before_injecting_again_leaves_nothing_old() -> None:
    for row in entry_points(group="opentelemetry_propagator"):
        if row.name.startswith("tracefill"):
            propagator = row.load()()
            carrier: dict[str, str] = {}
            full = TracefillPropagator().extract({**HEADERS, "baggage": "a=1"})
            propagator.inject(carrier, full)
            assert carrier
            for name in propagator.fields:
                carrier.pop(name, None)
            assert [name for name in carrier if not name.startswith(("uberctx-", "ot-baggage-"))] == []


def test_a_bad_header_gets_one_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        TraceContextPropagator().extract({"traceparent": TRACEPARENT.upper()})
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "traceparent ignored: the trace id is not lower-case hex")
    ]
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize("meddle", [lambda span: None, lambda span: vars(span), lambda span: setattr(span, "own", 1)])
def test_a_span_is_read_as_it_is_now(meddle: Any) -> None:
    """Attributes of spans are read by their place in the instance; a __dict__ that was asked for has none."""
    tracer = TracerProvider().get_tracer("t")
    span, other = tracer.start_span("a"), tracer.start_span("b")
    meddle(span)
    for held in (span.get_span_context(), other.get_span_context()):
        span._context = held  # type: ignore[attr-defined]
        out: dict[str, str] = {}
        TraceContextPropagator().inject(out, trace.set_span_in_context(span))
        assert out["traceparent"][3:52] == f"{held.trace_id:032x}-{held.span_id:016x}"
