"""A trace position for systems whose messages have no headers: in the value or beside it, as JSON, 29 bytes or protobuf.

    queue.put(json.dumps(wrap_json(order)))             # in a JSON object: one more member, `_trace`
    order, context = unwrap_json(json.loads(taken))

    socket.send(wrap_bytes(frame))                      # in front of bytes: 29 of them
    frame, context = unwrap_bytes(received)

    cursor.execute("INSERT INTO outbox VALUES (?, ?)", (order, beside()))       # a column of its own: text ...
    redis.xadd("orders", {"order": order, "trace": beside_bytes()})             # ... or 29 bytes
    with tracefill.context.scope(context_of(row.trace)):
        handle(row.order)

The JSON form has the short names of `Snapshot.to_json`: `t` trace id, `s` span id, `p` parent id (B3 only), `c` sampling
decision, and, where there are any, `f` flags, `w` tracestate, `b` baggage, `r` request id, `g` tags. The 29 bytes are those of
`grpc-trace-bin`: version, trace id, span id, flags; baggage does not fit.

Protobuf users put this message into their own (the names matter, the numbers do not) and call `fill` and `read`:

    message TracePosition {
      bytes position = 1;               // 29 bytes, the layout of grpc-trace-bin
      string trace_state = 2;           // W3C tracestate
      map<string, string> baggage = 3;  // W3C baggage
    }

What a stranger wrote never raises: no valid position is an empty Context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from tracefill._codec import Snapshot, snapshot
from tracefill.formats import TRACECONTEXT

__all__ = [
    "MEMBER",
    "SIZE",
    "beside",
    "beside_bytes",
    "context_of",
    "fill",
    "read",
    "unwrap_bytes",
    "unwrap_json",
    "wrap_bytes",
    "wrap_json",
]

MEMBER = "_trace"
SIZE = 2 + 16 + 1 + 8 + 1 + 1  # version and field, trace id, field, span id, field, flags


def beside(context: Context | None = None) -> str | None:
    """The position of a context (default: of now) as JSON text; None when there is no valid one.

    >>> context = context_of('{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00f067aa0ba902b7","c":"1"}')
    >>> beside(context)
    '{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00f067aa0ba902b7","c":"1"}'
    """
    with snapshot(context) as here:
        return here.to_json() if here.is_valid else None


def beside_bytes(context: Context | None = None) -> bytes | None:
    """The same in 29 bytes; None when there is no valid one."""
    with snapshot(context) as here:
        return here.to_bytes() if here.is_valid else None


def context_of(position: str | bytes | bytearray | memoryview | Mapping[str, Any] | None) -> Context:
    """The Context of what `beside` or `beside_bytes` gave; an empty one for None and for anything that is not valid.

    >>> context_of("not a position")
    {}
    """
    if isinstance(position, (bytearray, memoryview)):
        position = bytes(position)  # a database's column may come so
    if isinstance(position, bytes) and _is_binary(position):
        return _context(Snapshot.from_bytes(position))
    if isinstance(position, Mapping):
        return _context(Snapshot.from_json(dict(position)))
    return _context(Snapshot.from_json(position)) if isinstance(position, (str, bytes)) else Context()


def _context(found: Snapshot | None) -> Context:
    return Context() if found is None else found.to_context()


def _is_binary(data: bytes) -> bool:
    """29 bytes, version 0, with the marks of the three fields where they belong."""
    return len(data) == SIZE and data[:2] == b"\0\0" and data[18] == 1 and data[27] == 2


def wrap_json(value: Mapping[str, Any], context: Context | None = None) -> dict[str, Any]:
    """A copy of a JSON object with the position of a context (default: of now) as one more member.

    >>> here = context_of('{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00f067aa0ba902b7","c":"1"}')
    >>> wrap_json({"order": 7}, here)
    {'order': 7, '_trace': '{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00f067aa0ba902b7","c":"1"}'}
    """
    position = beside(context)
    bare = {name: member for name, member in value.items() if name != MEMBER}
    return bare if position is None else {**bare, MEMBER: position}


def unwrap_json(value: Any) -> tuple[Any, Context]:
    """What was wrapped, and its Context; the value itself, whatever it is, and an empty Context where it was not wrapped.

    >>> unwrap_json({"order": 7})
    ({'order': 7}, {})
    """
    if not isinstance(value, Mapping) or MEMBER not in value:
        return value, Context()
    return {name: member for name, member in value.items() if name != MEMBER}, context_of(value[MEMBER])


def wrap_bytes(body: bytes, context: Context | None = None) -> bytes:
    """The 29 bytes of a context's position (default: of now; zero ids where there is none), and the body behind them.

    >>> len(wrap_bytes(b"order"))
    34
    """
    with snapshot(context) as here:
        return here.to_bytes() + body


def unwrap_bytes(data: bytes) -> tuple[bytes, Context]:
    """What was wrapped, and its Context; the bytes themselves and an empty Context where they were not wrapped.

    >>> unwrap_bytes(wrap_bytes(b"order"))
    (b'order', {})
    """
    front = bytes(data[:SIZE])
    return (data[SIZE:], context_of(front)) if _is_binary(front) else (data, Context())


def fill(message: Any, context: Context | None = None) -> None:
    """Writes the position and baggage of a context (default: of now) into a protobuf TracePosition (see above)."""
    message.Clear()
    with snapshot(context) as here:
        if not here.is_valid:
            return
        message.position = here.to_bytes()
        message.trace_state = here.trace_state.to_header() if here.trace_state else ""
        message.baggage.update({name: str(value) for name, value in here.baggage.items()})


def read(message: Any) -> Context:
    """The Context that a protobuf TracePosition holds; an empty one when it holds none."""
    context = context_of(bytes(message.position))
    held = get_current_span(context).get_span_context()
    if held.is_valid and message.trace_state:
        traceparent = f"00-{held.trace_id:032x}-{held.span_id:016x}-{held.trace_flags:02x}"
        context = _context(TRACECONTEXT.decode(traceparent, message.trace_state))
    for name, value in message.baggage.items():
        context = baggage.set_baggage(name, value, context)
    return context
