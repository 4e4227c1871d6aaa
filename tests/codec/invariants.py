"""What must hold for any header values at all; the property tests and the fuzzer both try to break it.

Any values give a Snapshot or None, the same as the oracle's, the same as text and as bytes; `explain` has a reason
exactly when there is no Snapshot; every format writes what the oracle writes, and reads back what it wrote.
"""

from __future__ import annotations

from typing import Any

from tests.codec import reference
from tests.codec.reference import ORACLES, Position, Value
from tracefill.formats import FORMATS, decode_baggage, encode_baggage

# What a format cannot say is read back as the next best thing.
DECISION_READ_BACK = {
    "tracecontext": {"debug": "accept", "defer": "deny"},
    "b3": {},
    "b3multi": {},
    "jaeger": {"defer": "deny"},
    "xray": {"debug": "accept"},
    "datadog": {},
    "ottrace": {"debug": "accept"},
    "grpc_bin": {"debug": "accept", "defer": "deny"},
}


def position_of(snapshot: Any) -> Position | None:
    """A Snapshot as the oracle would have it, to be compared."""
    if snapshot is None:
        return None
    trace_state = "" if snapshot.trace_state is None else snapshot.trace_state.to_header()
    return Position(
        snapshot.trace_id, snapshot.span_id, snapshot.decision, snapshot.flags, snapshot.parent_id, trace_state
    )


def other_form(value: Value) -> Value:
    """Text as bytes, ASCII bytes as text; other bytes have no text form."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return value.decode() if value is not None and value.isascii() else value


def check(name: str, values: tuple[Value, ...]) -> Position | None:
    """The position in the values, when every invariant holds for them."""
    wire_format, oracle = FORMATS[name], ORACLES[name]
    snapshot, expected = wire_format.decode(*values), oracle.decode(*values)
    assert position_of(snapshot) == expected
    reason = wire_format.explain(*values)
    assert (reason is None) == (expected is not None), reason
    if name != "grpc_bin":
        assert position_of(wire_format.decode(*map(other_form, values))) == expected, "as the other of text and bytes"
    if expected is not None:
        for other, (_, encode) in ORACLES.items():
            written = FORMATS[other].encode(snapshot)
            assert written == encode(expected), f"written as {other}"
            assert position_of(FORMATS[other].decode(*written)) == read_back(other, expected), f"read back as {other}"
    return expected


def read_back(name: str, written: Position) -> Position | None:
    """What is left of a position after a way through a format."""
    trace_id = written.trace_id % 2**64 if name == "ottrace" else written.trace_id
    if not trace_id and name not in ("b3", "b3multi"):
        return None
    decision = DECISION_READ_BACK[name].get(written.decision, written.decision)
    flags = written.flags & 0b11 if name in ("tracecontext", "grpc_bin") else reference.flags_of(decision)
    trace_state = written.trace_state if name == "tracecontext" else ""
    return Position(trace_id, written.span_id, decision, flags, None, trace_state)


def check_baggage(headers: tuple[str | bytes, ...]) -> dict[str, str]:
    """The members of the header lines, when every invariant holds for them."""
    baggage = decode_baggage(*headers)
    expected = reference.decode_baggage(*headers)
    assert baggage == expected
    assert list(baggage) == list(expected), "order"
    sent_on = encode_baggage(baggage)
    assert sent_on == reference.pass_on_baggage(*headers), "sent on"
    assert encode_baggage(expected) == reference.encode_baggage(expected), "written as plain text"
    read_back = {} if sent_on is None else decode_baggage(sent_on)
    assert read_back.items() <= baggage.items(), "read back"
    return baggage
