"""The named cases of the specifications: decoded as text and as bytes, explained, and written again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.codec.invariants import other_form, position_of
from tests.codec.reference import ORACLES, Position
from tests.codec.vectors import load
from tracefill.formats import FORMATS, decode_baggage, encode_baggage

FIELDS = {
    "tracecontext": ("traceparent", "tracestate"),
    "b3": ("b3",),
    "b3multi": ("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
    "jaeger": ("uber-trace-id",),
    "xray": ("x-amzn-trace-id",),
    "datadog": (
        "x-datadog-trace-id",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-origin",
        "x-datadog-tags",
    ),
    "ottrace": ("ot-tracer-traceid", "ot-tracer-spanid", "ot-tracer-sampled"),
    "grpc_bin": ("grpc-trace-bin",),
}
VECTORS = [(name, vector) for name in FIELDS for vector in load(name)]


def each(vectors: list[tuple[str, dict[str, Any]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "vector"), vectors, ids=[f"{n}: {vector['name']}" for n, vector in vectors])


each_vector = each(VECTORS)
each_text_vector = each([(name, vector) for name, vector in VECTORS if name != "grpc_bin"])
each_written_vector = each([(name, vector) for name, vector in VECTORS if "encode" in vector])
each_tracestate = pytest.mark.parametrize("vector", load("tracestate"), ids=lambda vector: vector["name"])
each_baggage = pytest.mark.parametrize("vector", load("baggage"), ids=lambda vector: vector["name"])

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def expected_position(vector: dict[str, Any]) -> Position | None:
    expect = vector["expect"]
    if expect is None:
        return None
    parent_id = int(expect["parent_id"], 16) if "parent_id" in expect else None
    ids = int(expect["trace_id"], 16), int(expect["span_id"], 16)
    return Position(*ids, expect["decision"], expect["flags"], parent_id, expect.get("trace_state", ""))


def test_every_format_has_its_name_and_its_header_names() -> None:
    assert {name: wire_format.fields for name, wire_format in FORMATS.items()} == FIELDS
    assert {name: wire_format.name for name, wire_format in FORMATS.items()} == {name: name for name in FIELDS}


@each_vector
def test_decode(name: str, vector: dict[str, Any]) -> None:
    assert position_of(FORMATS[name].decode(*vector["values"])) == expected_position(vector)


@each_text_vector
def test_decode_as_the_other_of_text_and_bytes(name: str, vector: dict[str, Any]) -> None:
    values = [other_form(value) for value in vector["values"]]
    assert position_of(FORMATS[name].decode(*values)) == expected_position(vector)


@each_vector
def test_decode_with_trailing_values_left_out(name: str, vector: dict[str, Any]) -> None:
    values = list(vector["values"])
    while values and values[-1] is None:
        values.pop()
    assert position_of(FORMATS[name].decode(*values)) == expected_position(vector)


@each_vector
def test_explain_has_a_reason_exactly_when_nothing_is_decoded(name: str, vector: dict[str, Any]) -> None:
    reason = FORMATS[name].explain(*vector["values"])
    if vector["expect"] is not None:
        assert reason is None
    else:
        assert isinstance(reason, str)
        assert reason
        assert len(reason.splitlines()) == 1


@each_written_vector
def test_encode(name: str, vector: dict[str, Any]) -> None:
    snapshot = FORMATS[name].decode(*vector["values"])
    assert FORMATS[name].encode(snapshot) == tuple(vector["encode"])


@each_vector
def test_the_oracle_agrees_with_the_vector(name: str, vector: dict[str, Any]) -> None:
    expected = expected_position(vector)
    assert ORACLES[name].decode(*vector["values"]) == expected
    if "encode" in vector:
        assert expected is not None
        assert ORACLES[name].encode(expected) == tuple(vector["encode"])


@each_tracestate
def test_tracestate(vector: dict[str, Any]) -> None:
    (tracestate,) = vector["values"]
    for value in (tracestate, other_form(tracestate)):
        snapshot = FORMATS["tracecontext"].decode(TRACEPARENT, value)
        assert snapshot is not None, "a tracestate never costs the traceparent"
        assert FORMATS["tracecontext"].encode(snapshot) == (TRACEPARENT, vector["expect"] or None)
        if "mapping" in vector:
            assert dict(snapshot.trace_state or {}) == vector["mapping"]


@each_baggage
def test_baggage(vector: dict[str, Any]) -> None:
    assert decode_baggage(*vector["headers"]) == vector["expect"]
    assert decode_baggage(*map(other_form, vector["headers"])) == vector["expect"]


@each_baggage
def test_baggage_sent_on(vector: dict[str, Any]) -> None:
    if "encode" in vector:
        assert encode_baggage(decode_baggage(*vector["headers"])) == vector["encode"]


def test_a_semicolon_in_a_baggage_value_is_percent_coded() -> None:
    assert encode_baggage({"a": "1;p=2"}) == "a=1%3Bp%3D2"


def test_a_baggage_value_with_properties_is_text_like_any_other() -> None:
    value = decode_baggage("a=1;p=2")["a"]
    assert isinstance(value, str)
    assert (value, hash(value), value.upper()) == ("1;p=2", hash("1;p=2"), "1;P=2")
