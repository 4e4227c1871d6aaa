"""Which trace each message of a websocket belongs to: told by its client, heard by its server.

A handshake has headers, a message has none. So a client of tracefill's asks in the handshake (`tracefill-websocket: 1`), and
a server that hears it answers with the same line; nobody else ever sees a byte that is not the program's. From then on the
client tells, right before a message, when the current span is another than it was for the message before:

    pong frame: "tracefill 00-<trace id>-<span id>-01 vendor=1"     # the tracestate where it fits into 125 bytes
    pong frame: "tracefill "                                        # back to the span of the handshake

A pong that nobody has asked for is RFC 6455's one-way frame (5.5.3). A ping would be answered, each of them, and where two
stand unanswered the other side may answer the later one only: a program's own ping could wait for ever.

The server counts the messages that have arrived, so it knows from which one on an announcement holds, and makes its context
current for whoever receives that message, until he asks for the next one. There is no span a message. Baggage, tags and the
request id are those of the handshake. What a server sends belongs to the trace of its handshake: the way back has no announcements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from opentelemetry.context import Context, create_key
from opentelemetry.trace import Span, get_current_span

from tracefill._codec import Snapshot, find_header, make_current, snapshot
from tracefill.context import current
from tracefill.formats import TRACECONTEXT
from tracefill.spans import suppressed

__all__ = [
    "HEADER",
    "HEARD",
    "VERSION",
    "Announcer",
    "Heard",
    "Server",
    "asked",
    "hearing",
    "listen",
    "servers",
    "waiting",
]

#: The header by which client and server agree, and its value.
HEADER = "tracefill-websocket"
VERSION = "1"

#: Where an ASGI scope holds its connection's Heard.
HEARD = "tracefill.heard"

_MARK = b"tracefill "
_MOST_BYTES = 125  # of a control frame's payload; RFC 6455, 5.5
_KEY = create_key("tracefill-announced")

_logger = logging.getLogger("tracefill")

Position = tuple[int, int]


class Announcer:
    """The client's side of one connection. What was current when it was opened stands for the handshake."""

    __slots__ = ("_handshake", "_told")

    def __init__(self, *handshake: Context) -> None:
        self._handshake = {_position(context) for context in handshake}
        self._told: Position | None = None

    def due(self) -> bytes | None:
        """The payload to be sent before the next message; None where that belongs where the one before did."""
        here = None if suppressed() else _position(current())
        if here in self._handshake:
            here = None
        if here == self._told:
            return None
        self._told = here
        return _MARK if here is None else _written()


def _position(context: Context) -> Position | None:
    span = get_current_span(context).get_span_context()
    return (span.trace_id, span.span_id) if span.is_valid else None


def _written() -> bytes:
    with snapshot() as here:
        traceparent, trace_state = TRACECONTEXT.encode(here)
    payload = _MARK + str(traceparent).encode()
    if trace_state and len(payload) + 1 + len(trace_state) <= _MOST_BYTES:
        payload += b" " + str(trace_state).encode()
    return payload


class Heard:
    """The server's side of one connection: what has arrived, what of it was delivered, and where that belongs."""

    __slots__ = ("_announced", "_arrived", "_delivered", "_position")

    def __init__(self) -> None:
        self._announced: dict[int, Snapshot | None] = {}  # by the message from which on it holds
        self._arrived = 0
        self._delivered = 0
        self._position: Snapshot | None = None

    def pong(self, payload: Any) -> None:
        """A pong has arrived; most are the answers to pings."""
        data = bytes(payload)
        if data.startswith(_MARK):
            self._announced[self._arrived] = _read(data[len(_MARK) :])

    def message(self) -> None:
        """A message has arrived, with the last of its frames."""
        self._arrived += 1

    def leave(self) -> None:
        """The program asks for the next message: what was current before the last one is current again."""
        if (waited := _waited.get()) is not None:
            waited[self] = False
        here = current()
        if isinstance(here, _Message) and here.heard is self:
            make_current(here.before)

    def deliver(self) -> None:
        """The program is given the next message: its context is current."""
        if self._delivered in self._announced:
            self._position = self._announced.pop(self._delivered)
        self._delivered += 1
        if (waited := _waited.get()) is not None:
            waited[self] = True
        self.enter()

    def enter(self) -> None:
        """The context of the message that was delivered last is current; a span that the program has opened under it stays."""
        position, here = self._position, current()
        if position is not None and here.get(_KEY) != position:
            make_current(_Message(self, position, here))


class _Message(Context):
    """The context of one message. What is made from it (by a span that is opened) is a Context like any other."""

    __slots__ = ("before", "heard")

    def __init__(self, heard: Heard, position: Snapshot, before: Context) -> None:
        super().__init__({**position.to_context(before), _KEY: position})
        self.heard = heard
        self.before = before

    def span_above(self) -> Span:
        """See _codec.SpanStart."""
        return get_current_span(self)


# Who is asked for a message below a `wait_for`, and whether he had one.
_waited: ContextVar[dict[Heard, bool] | None] = ContextVar("tracefill_waited", default=None)


def waiting(original: Any) -> Callable[..., Any]:
    """asyncio.wait_for before Python 3.12, which runs what it waits for in a task of its own: a message that is received there
    is handled by whoever waited."""

    async def wait_for(fut: Any, timeout: Any, **options: Any) -> Any:
        waited: dict[Heard, bool] = {}
        token = _waited.set(waited)
        try:
            return await original(fut, timeout, **options)
        finally:
            _waited.reset(token)
            for heard, has_delivered in waited.items():
                heard.leave()
                if has_delivered:
                    heard.enter()

    return wait_for


def _read(announced: bytes) -> Snapshot | None:
    """The position that was announced; None for that of the handshake, and for what cannot be read."""
    if not announced:
        return None
    traceparent, _, trace_state = announced.partition(b" ")
    position = TRACECONTEXT.decode(traceparent, trace_state or None)
    if position is None:
        _logger.debug("websocket announcement: %s", TRACECONTEXT.explain(traceparent, trace_state or None))
    return position


# ------------------------------------------------------------------------------------------------------------------- ASGI

#: Told that the frames of a connection are to be heard, by the owner of the `send` that the ASGI server hands to its
#: application; False where that is a server of another kind.
Server = Callable[[Any, Heard], bool]
servers: list[Server] = []


def asked(value: str | bytes | None) -> bool:
    """True when a client with this value of the header announces, if he is answered."""
    return value in (VERSION, VERSION.encode())


def listen(asgi_scope: Any, receive: Any, send: Any) -> tuple[Any, Any]:
    """`receive` and `send` of a websocket, with ears where the client asks for them."""
    if not servers or not asked(find_header(asgi_scope.get("headers", ()), HEADER.encode())):
        return receive, send
    heard = asgi_scope[HEARD] = Heard()
    return hearing(heard, receive, heard.deliver), _answering(heard, send)


def hearing(heard: Heard, receive: Any, delivered: Callable[[], None]) -> Any:
    """`receive` that leaves the message before; `delivered` makes the next one's context current."""

    async def receiving() -> Any:
        heard.leave()
        message = await receive()
        if message["type"] == "websocket.receive":
            delivered()
        return message

    return receiving


def _answering(heard: Heard, send: Any) -> Any:
    owner = getattr(send, "__self__", None)

    def sending(message: Any) -> Any:
        if message["type"] == "websocket.accept" and any(server(owner, heard) for server in servers):
            headers = [*message.get("headers", ()), (HEADER.encode(), VERSION.encode())]
            message = {**message, "headers": headers}
        return send(message)

    return sending
