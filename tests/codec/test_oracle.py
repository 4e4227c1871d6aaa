"""The compiled core against the slow oracle, on values that nobody wrote down. `fuzz.py` is the long form."""

from __future__ import annotations

from random import Random
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, get_current_span

from tests.codec import reference
from tests.codec.inputs import Inputs
from tests.codec.invariants import check, check_baggage, position_of
from tests.codec.reference import ORACLES, TOKEN, Position
from tracefill import carriers, propagators
from tracefill.formats import FORMATS, decode_baggage, encode_baggage

PROPAGATORS = {
    "tracecontext": propagators.TraceContextPropagator(),
    "b3": propagators.B3Propagator(),
    "b3multi": propagators.B3MultiPropagator(),
    "jaeger": propagators.JaegerPropagator(),
    "xray": propagators.XRayPropagator(),
    "datadog": propagators.DatadogPropagator(),
    "ottrace": propagators.OTTracePropagator(),
}
each_format = pytest.mark.parametrize("name", ORACLES)
thorough = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
any_value = st.none() | st.text() | st.binary()
digits = st.sampled_from(["0", "1", "9", "a", "f", "A", "g", "\u0661"])


@each_format
@given(random=st.randoms(use_true_random=False))
@thorough
def test_core_agrees_with_oracle_on_values_made_from_the_vectors(name: str, random: Random) -> None:
    inputs = Inputs(name, random)
    for _ in range(10):
        check(name, inputs.next_values())


@each_format
@given(data=st.data())
@thorough
def test_core_agrees_with_oracle_on_anything(name: str, data: Any) -> None:
    width = len(FORMATS[name].fields)
    check(name, tuple(data.draw(st.lists(any_value, min_size=width, max_size=width))))


@pytest.mark.parametrize("name", PROPAGATORS)
@given(random=st.randoms(use_true_random=False))
@thorough
def test_propagators_extract_what_the_oracle_decodes(name: str, random: Random) -> None:
    values = Inputs(name, random).next_values()
    pairs = [(field, value) for field, value in zip(FORMATS[name].fields, values, strict=False) if value is not None]
    expected = ORACLES[name].decode(*values)
    for carrier in (dict(pairs), pairs, [(field.encode(), value) for field, value in pairs]):
        context = PROPAGATORS[name].extract(carrier, Context(), carriers.getter)
        span_context = get_current_span(context).get_span_context()
        if expected is not None and not expected.trace_id:
            assert not span_context.trace_flags.sampled
            assert span_context.is_remote == (expected.decision == "deny"), "a deny needs a parent that samplers ask"
        else:
            assert summary_of(span_context) == summary_expected(expected), carrier


Summary: TypeAlias = tuple[int, int, int, str, bool]


def summary_of(span_context: SpanContext) -> Summary:
    ids = span_context.trace_id, span_context.span_id
    return *ids, span_context.trace_flags & 0b11, span_context.trace_state.to_header(), span_context.is_remote


def summary_expected(at: Position | None) -> Summary:
    """A SpanContext cannot leave the decision open; that is taken for a yes."""
    if at is None:
        return summary_of(INVALID_SPAN_CONTEXT)
    return at.trace_id, at.span_id, 1 if at.decision == "defer" else at.flags & 0b11, at.trace_state, True


@given(
    version=st.sampled_from(["00", "01", "cc", "ff", "0g"]),
    trace_id=st.text(digits, min_size=31, max_size=33),
    span_id=st.text(digits, min_size=15, max_size=17),
    flags=st.text(digits, min_size=1, max_size=3),
    rest=st.sampled_from(["", "-", "-x", ".x"]),
)
@thorough
def test_core_agrees_with_oracle_at_the_edges_of_traceparent(
    version: str, trace_id: str, span_id: str, flags: str, rest: str
) -> None:
    check("tracecontext", (f"{version}-{trace_id}-{span_id}-{flags}{rest}",))


@given(
    members=st.lists(
        st.tuples(st.text("a0_@A", max_size=3), st.sampled_from(["=", "=", "=", ""]), st.text("a =,\t~", max_size=4)),
        max_size=34,
    ),
    comma=st.sampled_from([",", " ,", ",\t", ", ,"]),
)
@thorough
def test_core_agrees_with_oracle_on_tracestate(members: list[tuple[str, str, str]], comma: str) -> None:
    tracestate = comma.join("".join(member) for member in members)
    check("tracecontext", ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", tracestate))


@given(random=st.randoms(use_true_random=False))
@thorough
def test_core_agrees_with_oracle_on_baggage_made_from_the_vectors(random: Random) -> None:
    inputs = Inputs("baggage", random)
    for _ in range(10):
        check_baggage(tuple(value for value in inputs.next_values() if value is not None))


@given(headers=st.lists(st.text() | st.binary(), max_size=3))
@thorough
def test_core_agrees_with_oracle_on_any_baggage(headers: list[str | bytes]) -> None:
    check_baggage(tuple(headers))


@given(baggage=st.dictionaries(st.text(sorted(TOKEN), min_size=1), st.text(st.characters(exclude_categories=["Cs"]))))
@thorough
def test_baggage_that_is_written_is_read_back(baggage: dict[str, str]) -> None:
    header = encode_baggage(baggage)
    assert header == reference.encode_baggage(baggage)
    assert decode_baggage(*filter(None, [header])) == baggage


@each_format
def test_values_without_end_cost_linear_time(name: str) -> None:
    """Not a clock: a core that is not linear does not get through this at all."""
    width = len(FORMATS[name].fields)
    for letter in ("0", "a", "-", ":", ";", ",", "=", "%", " ", "\t", "\u0661", "\0"):
        assert FORMATS[name].decode(*[letter * 5_000_000] * width) is None
        assert FORMATS[name].explain(*[letter.encode() * 2_000_000] * width)


def test_baggage_without_end_costs_linear_time() -> None:
    for letter in ("0", "=", ";", ",", "%", "%20", "a=1,", "a=1;p;", " ", "\t", "\u0661"):
        assert len(decode_baggage(letter * 2_000_000)) <= 1


class TextOfAnotherKind(str):
    """As some frameworks hand headers over: a `str`, but not exactly."""


class BytesOfAnotherKind(bytes):
    pass


KINDS: dict[type, type] = {str: TextOfAnotherKind, bytes: BytesOfAnotherKind}


@each_format
def test_a_subclass_of_text_or_bytes_is_read_like_its_parent(name: str) -> None:
    for vector_values in Inputs(name, Random(0)).seeds:
        values = [KINDS.get(type(value), type(value))(value) if value else value for value in vector_values]
        assert position_of(FORMATS[name].decode(*values)) == ORACLES[name].decode(*vector_values)
