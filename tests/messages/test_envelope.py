"""tracefill.messages.envelope: positions in the value or beside it, as JSON, bytes and protobuf."""

from __future__ import annotations

import importlib.util
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace

import tracefill
from tests.contracts import ancestors, finished, tracer
from tracefill import tags
from tracefill.context import scope
from tracefill.formats import B3
from tracefill.messages import envelope

TRACE_ID, SPAN_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "0af7651916cd43dd"
HERE = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=value", "baggage": "customer=blue%20one"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "messages.md"


def headers_of(context: Any) -> dict[str, str]:
    headers: dict[str, str] = {}
    tracefill.inject(headers, context)
    return headers


class TestBeside:
    def test_json_holds_all_of_it(self) -> None:
        position = envelope.beside(tracefill.extract(HERE))
        assert position is not None
        assert json.loads(position).items() >= {"t": TRACE_ID, "s": SPAN_ID, "c": "1", "w": "vendor=value"}.items()
        assert headers_of(envelope.context_of(position)) == HERE

    def test_json_keeps_the_decision_that_only_b3_has(self) -> None:
        position = envelope.beside(tracefill.extract({"b3": f"{TRACE_ID}-{SPAN_ID}-d"}))
        assert position is not None
        assert json.loads(position) == {"t": TRACE_ID, "s": SPAN_ID, "c": "d"}
        with tracefill.snapshot(envelope.context_of(position)) as there:
            assert there.decision == "debug"

    def test_json_of_a_b3_header_with_its_parent(self) -> None:
        held = B3.decode(f"{TRACE_ID}-{SPAN_ID}-1-{PARENT_ID}")
        assert held is not None
        assert json.loads(held.to_json()) == {"t": TRACE_ID, "s": SPAN_ID, "p": PARENT_ID, "c": "1"}
        assert headers_of(envelope.context_of(held.to_json())) == {"traceparent": HERE["traceparent"]}

    def test_json_takes_the_business_tags_along(self) -> None:
        tags.declare(tags.Tag("tenant_id"))
        try:
            with tracer.start_as_current_span("near"), tags.scope(tenant_id="blue"):
                position = envelope.beside()
            assert tags.current(envelope.context_of(position)) == {"tenant_id": "blue"}
        finally:
            tags.forget()

    @pytest.mark.parametrize("flags", ["00", "01", "03"])
    def test_bytes_are_those_of_grpc_trace_bin(self, flags: str) -> None:
        context = tracefill.extract({"traceparent": HERE["traceparent"][:-2] + flags})
        position = envelope.beside_bytes(context)
        assert position == bytes.fromhex(f"00 00{TRACE_ID} 01{SPAN_ID} 02{flags}")
        for kind in (bytes, bytearray, memoryview):
            assert headers_of(envelope.context_of(kind(position))) == headers_of(context)

    def test_outside_of_a_trace_there_is_none(self) -> None:
        assert envelope.beside() is None
        assert envelope.beside_bytes() is None
        assert envelope.context_of(None) == {}

    def test_a_row_of_an_outbox_brings_its_context(self, spans: Any) -> None:
        with sqlite3.connect(":memory:") as database:
            database.execute("CREATE TABLE outbox (body TEXT, trace TEXT, short BLOB)")
            with tracer.start_as_current_span("near"):
                row = ("order", envelope.beside(), envelope.beside_bytes())
                database.execute("INSERT INTO outbox VALUES (?, ?, ?)", row)
            [(_, trace_column, short)] = database.execute("SELECT * FROM outbox")
        for name, position in (("far", trace_column), ("far by bytes", short)):
            with scope(envelope.context_of(position)):
                tracer.start_span(name).end()
            assert ancestors(spans, finished(spans, name)) == ["near"]

    @given(st.one_of(st.binary(), st.binary(min_size=29, max_size=29), st.text(), st.integers(), st.none()))
    def test_what_a_stranger_wrote_never_raises(self, position: Any) -> None:
        assert isinstance(envelope.context_of(position), dict)

    @pytest.mark.parametrize(
        "position",
        [
            "{}",
            "[]",
            "null",
            b"\xff\xfe",
            f'{{"t":"{"0" * 32}","s":"{SPAN_ID}","c":"1"}}',
            f'{{"t":"{TRACE_ID.upper()}","s":"{SPAN_ID}","c":"1"}}',
            f'{{"t":"{TRACE_ID}","s":7,"c":"1"}}',
            f'{{"t":"{TRACE_ID}"',
            b"\0\0" + bytes(16) + b"\1" + bytes(8) + b"\2\1",
            b"\1\0" + bytes.fromhex(TRACE_ID) + b"\1" + bytes.fromhex(SPAN_ID) + b"\2\1",
            {"t": TRACE_ID, "s": None},
        ],
    )
    def test_what_is_not_valid_is_an_empty_context(self, position: Any) -> None:
        assert not trace.get_current_span(envelope.context_of(position)).get_span_context().is_valid


class TestInTheValue:
    def test_json(self, spans: Any) -> None:
        order = {"order": 7, "_trace": "of whoever sent it first"}
        with tracer.start_as_current_span("near"):
            text = json.dumps(envelope.wrap_json(order))
        assert order == {"order": 7, "_trace": "of whoever sent it first"}
        taken, context = envelope.unwrap_json(json.loads(text))
        assert taken == {"order": 7}
        with scope(context):
            tracer.start_span("far").end()
        assert ancestors(spans, finished(spans, "far")) == ["near"]

    def test_json_of_somebody_who_writes_an_object_instead_of_text(self) -> None:
        wrapped = {"order": 7, "_trace": {"t": TRACE_ID, "s": SPAN_ID, "c": "1"}}
        assert headers_of(envelope.unwrap_json(wrapped)[1]) == {"traceparent": HERE["traceparent"]}

    def test_json_outside_of_a_trace_is_not_wrapped(self) -> None:
        assert envelope.wrap_json({"order": 7}) == {"order": 7}

    @pytest.mark.parametrize("value", [{"order": 7}, [1, 2], "text", None, 7])
    def test_json_that_is_not_wrapped_is_returned_as_it_is(self, value: Any) -> None:
        taken, context = envelope.unwrap_json(value)
        assert taken is value
        assert context == {}

    def test_bytes(self, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            frame = envelope.wrap_bytes(b"order")
        body, context = envelope.unwrap_bytes(frame)
        assert body == b"order"
        with scope(context):
            tracer.start_span("far").end()
        assert ancestors(spans, finished(spans, "far")) == ["near"]

    def test_bytes_outside_of_a_trace_are_wrapped_all_the_same(self) -> None:
        assert envelope.unwrap_bytes(envelope.wrap_bytes(b"order")) == (b"order", {})

    @pytest.mark.parametrize("data", [b"", b"order", bytes(29), b"\0" * 40, b'{"order": 7}' * 9])
    def test_bytes_that_are_not_wrapped_are_returned_as_they_are(self, data: bytes) -> None:
        assert envelope.unwrap_bytes(data) == (data, {})


class TestProtobuf:
    @pytest.fixture(scope="class")
    def message_type(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        """The documented message, as a user compiles it."""
        folder = tmp_path_factory.mktemp("proto")
        found = re.search(r"message TracePosition \{.*?\n\}", DOCUMENT.read_text(), re.DOTALL)
        assert found is not None
        (folder / "envelope_position.proto").write_text(f'syntax = "proto3";\n{found.group()}\n')
        assert protoc.main(["", f"-I{folder}", f"--python_out={folder}", "envelope_position.proto"]) == 0
        spec = importlib.util.spec_from_file_location("envelope_position_pb2", folder / "envelope_position_pb2.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.TracePosition

    def test_the_module_documents_the_same_message(self, message_type: Any) -> None:
        names = [field.name for field in message_type.DESCRIPTOR.fields]
        assert names == re.findall(r"(\w+) = \d;", envelope.__doc__ or "")

    def test_it_holds_all_of_it(self, message_type: Any) -> None:
        message = message_type(position=b"old", trace_state="old=1", baggage={"old": "1"})
        envelope.fill(message, tracefill.extract(HERE))
        assert dict(message.baggage) == {"customer": "blue one"}
        received = message_type.FromString(message.SerializeToString())
        assert headers_of(envelope.read(received)) == HERE

    def test_outside_of_a_trace_it_is_empty(self, message_type: Any) -> None:
        message = message_type(position=b"old")
        envelope.fill(message)
        assert message == message_type()
        assert envelope.read(message) == {}

    @pytest.mark.parametrize("state", ["", "=", "a" * 600, "a=1,a=2"])
    def test_a_trace_state_that_is_not_valid_costs_nothing_else(self, message_type: Any, state: str) -> None:
        message = message_type()
        envelope.fill(message, tracefill.extract(HERE))
        message.trace_state = state
        context = envelope.read(message)
        assert headers_of(context)["traceparent"] == HERE["traceparent"]
        assert baggage.get_baggage("customer", context) == "blue one"

    @given(st.binary(max_size=40), st.text(max_size=40))
    def test_what_a_stranger_wrote_never_raises(self, message_type: Any, position: bytes, state: str) -> None:
        assert isinstance(envelope.read(message_type(position=position, trace_state=state)), dict)
