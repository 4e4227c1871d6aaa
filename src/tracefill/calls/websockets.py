"""websockets (13 and later, `websockets.sync` from 11 on) and wsproto: each message belongs to the span that has sent it.

    tracefill.install()
    with connect("ws://shop/orders") as socket:             # a client span as long as the handshake
        with tracer.start_as_current_span("order 1"):
            socket.send("1")                                # is received under the span of order 1

Clients (`websockets.sync`, `websockets.asyncio`, `websockets.legacy`) have a client span for each handshake. The library's own
servers (`websockets.sync`, `websockets.asyncio`) have a server span for each connection, as long as its handler; ASGI servers
have theirs by `tracefill.calls.asgi`. The messages that clients send belong to the span in which they are sent, where the
server is one of these or an ASGI server on top of websockets or wsproto (uvicorn, hypercorn): `tracefill.edge.announcements`
says how. What servers send, and to whom tracefill is unknown, belongs to the handshake. Contrib has no instrumentation of it.
Without install(): `headers = {}; inject(headers); connect(url, additional_headers=headers)`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from tracefill.calls import websocket_servers
from tracefill.calls.client_spans import Call, Client
from tracefill.carriers import pairs
from tracefill.context import extract, inject, scope
from tracefill.edge import announcements
from tracefill.edge.announcements import HEADER, HEARD, VERSION, Announcer, Heard
from tracefill.wrapping import Patches

__all__ = ["EACH", "LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

_logger = logging.getLogger("tracefill")
_client = Client("websockets")
_patches = Patches()

# Where a client's connection keeps its Announcer.
_ANNOUNCER = "tracefill.announcer"

# RFC 6455, 5.2: what a frame is.
_TEXT, _BINARY, _PONG = 0x1, 0x2, 0xA
_CONTROL = 0x8


def patch() -> None:
    for (name, last), patch_part in _PARTS.items():
        module = sys.modules.get(name)
        if hasattr(module, last):  # else it waits itself for the import that patch() was called for
            patch_part(module)
    if sys.version_info < (3, 12) and "asyncio" in sys.modules:
        for module in (sys.modules["asyncio"], sys.modules["asyncio.tasks"]):
            _patches.wrap(module, "wait_for", announcements.waiting)
    for server in (_is_websockets, _is_legacy, _is_wsproto):
        if server not in announcements.servers:
            announcements.servers.append(server)


def unpatch() -> None:
    _patches.undo()
    announcements.servers.clear()


# ------------------------------------------------------------------------------------------------------------- handshakes


class _Opening:
    """What one `connect()` is at: the latest of the handshakes that it takes."""

    def __init__(self, connector: Any) -> None:
        headers = _pairs(getattr(connector, "additional_headers", None))  # since websockets 14
        self.call = _client.begin("GET", connector.uri, headers)
        self._handshakes = 0
        self._token: Any = None

    def next(self, url: str, headers: Any) -> Call | None:
        """The call of a handshake that is about to be sent; what follows upon the first are redirects."""
        if self._handshakes:
            self.call = _client.begin("GET", url, headers, resends=self._handshakes)
        self._handshakes += 1
        return self.call

    def __enter__(self) -> None:
        self._token = _opening.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _opening.reset(self._token)
        if self.call is not None:
            self.call.end(error)


_opening: ContextVar[_Opening | None] = ContextVar("tracefill_websocket_opening", default=None)


def _connect(original: Any) -> Callable[..., Any]:
    def connect(self: Any) -> Any:
        with _Opening(self):
            return original(self)

    return connect


def _connect_async(original: Any) -> Callable[..., Any]:
    async def connect(self: Any) -> Any:
        with _Opening(self):
            return await original(self)

    return connect


def _handshake(original: Any) -> Callable[..., Any]:
    def handshake(self: Any, additional_headers: Any = None, *args: Any, **kwargs: Any) -> None:
        shaking = _Handshake(self, additional_headers)
        with shaking:
            original(self, shaking.headers, *args, **kwargs)

    return handshake


def _handshake_async(original: Any) -> Callable[..., Any]:
    async def handshake(self: Any, additional_headers: Any = None, *args: Any, **kwargs: Any) -> None:
        shaking = _Handshake(self, additional_headers)
        with shaking:
            await original(self, shaking.headers, *args, **kwargs)

    return handshake


class _Handshake:
    """One handshake on its way out, and its answer. `headers`: those of the caller, with ours."""

    def __init__(self, connection: Any, headers: Any) -> None:
        self._connection = connection
        self.headers = headers
        opening, given = _opening.get(), _pairs(headers)
        protocol = connection.protocol
        url = _url(getattr(protocol, "uri", None) or protocol.wsuri)  # the latter before websockets 15
        self._call = opening.next(url, given) if opening is not None else _client.begin("GET", url, given)
        if self._call is not None:
            self.headers = _with_ours(given, self._call)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        call, response = self._call, self._connection.response
        if call is None:
            return
        if response is not None:
            call.responded(response.status_code, 11, list(response.headers.raw_items()))
            if response.status_code != 101:
                error = None  # an answer, if not the one that was hoped for
        call.end(error)
        if error is None and response is not None:
            _agree(self._connection.protocol, call, response.headers)


def _agree(connection: Any, call: Call, answered: Any) -> None:
    """Messages are announced from now on, where the server has said that it listens."""
    if answered.get_all(HEADER) == [VERSION]:
        vars(connection)[_ANNOUNCER] = Announcer(call.outer, call.inside)


def _handshake_legacy(original: Any) -> Callable[..., Any]:
    async def handshake(self: Any, wsuri: Any, *args: Any, **kwargs: Any) -> None:
        given = _pairs(kwargs.get("extra_headers", self.extra_headers))
        call = _client.begin("GET", _url(wsuri), given)
        if call is None:
            await original(self, wsuri, *args, **kwargs)
            return
        self.extra_headers = kwargs["extra_headers"] = _with_ours(given, call)
        try:
            await original(self, wsuri, *args, **kwargs)
        except BaseException as error:
            _fail_legacy(call, error)
            raise
        call.responded(101, 11, list(self.response_headers.raw_items()))
        call.end()
        _agree(self, call, self.response_headers)

    return handshake


def _fail_legacy(call: Call, error: BaseException) -> None:
    status = getattr(error, "status_code", None)
    if status is not None:
        call.responded(status, 11)
    is_answer = status is not None or type(error).__name__ == "RedirectHandshake"
    call.end(None if is_answer else error)


def _url(uri: Any) -> str:
    return f"{'wss' if uri.secure else 'ws'}://{_host(uri.host)}:{uri.port}{uri.resource_name}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _pairs(headers: Any) -> list[tuple[str, str]]:
    """A copy of the headers that a caller has given, in whatever shape."""
    if headers is None:
        return []
    return list(headers.raw_items() if hasattr(headers, "raw_items") else pairs(headers))


def _with_ours(given: list[tuple[str, str]], call: Call) -> list[tuple[str, str]]:
    headers = [*given, (HEADER, VERSION)]
    call.inject(headers)
    return headers


# ------------------------------------------------------------------------------------------- frames, sent and received


def _sending(original: Any) -> Callable[..., Any]:
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        announcer: Announcer | None = vars(self).get(_ANNOUNCER)
        # The program holds the connection's lock, or does not await in between: nothing comes between the two.
        if announcer is not None and self.state.name == "OPEN" and not self.expect_continuation_frame:
            _announce(announcer, self.send_pong)
        return original(self, *args, **kwargs)

    return send


def _writing_legacy(original: Any) -> Callable[..., Any]:
    async def write_frame(self: Any, fin: bool, opcode: int, *args: Any, **kwargs: Any) -> Any:
        announcer: Announcer | None = vars(self).get(_ANNOUNCER)
        if announcer is not None and opcode in (_TEXT, _BINARY) and self.state.name == "OPEN":
            _announce(announcer, lambda payload: self.write_frame_sync(True, _PONG, payload))
        return await original(self, fin, opcode, *args, **kwargs)

    return write_frame


def _announce(announcer: Announcer, send: Callable[[bytes], object]) -> None:
    try:
        payload = announcer.due()
        if payload is not None:
            send(payload)
    except Exception:  # ours; the message has to go
        _logger.debug("a websocket message was not announced", exc_info=True)


def _receiving(original: Any) -> Callable[..., Any]:
    def recv_frame(self: Any, frame: Any) -> None:
        original(self, frame)
        _hear(self, frame)

    return recv_frame


def _reading_legacy(original: Any) -> Callable[..., Any]:
    async def read_frame(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = await original(self, *args, **kwargs)
        _hear(self, frame)
        return frame

    return read_frame


def _hear(connection: Any, frame: Any) -> None:
    heard: Heard | None = vars(connection).get(HEARD)
    if heard is None:
        return
    if frame.opcode == _PONG:
        heard.pong(frame.data)
    elif frame.opcode < _CONTROL and frame.fin:
        heard.message()


# ---------------------------------------------------------------------------------------------------- servers to be heard


def _is_websockets(owner: Any, heard: Heard) -> bool:
    """uvicorn's `websockets-sansio`."""
    protocol = getattr(sys.modules.get("websockets.protocol"), "Protocol", None)
    connection = getattr(owner, "conn", None)
    if protocol is None or not isinstance(connection, protocol):
        return False
    vars(connection)[HEARD] = heard
    return True


def _is_legacy(owner: Any, heard: Heard) -> bool:
    """uvicorn's `websockets`."""
    protocol = getattr(sys.modules.get("websockets.legacy.protocol"), "WebSocketCommonProtocol", None)
    if protocol is None or not isinstance(owner, protocol):
        return False
    vars(owner)[HEARD] = heard
    return True


# The websocket that this task is about to accept: the connection of wsproto is made in the course of that.
_accepted: ContextVar[Heard | None] = ContextVar("tracefill_websocket_accepted", default=None)


def _is_wsproto(owner: Any, heard: Heard) -> bool:
    """uvicorn's `wsproto`, and hypercorn."""
    if type(getattr(owner, "conn", None)).__module__ != "wsproto" and type(owner).__module__ != _HYPERCORN:
        return False
    _accepted.set(heard)
    return True


_HYPERCORN = "hypercorn.protocol.ws_stream"


def _made(original: Any) -> Callable[..., Any]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        heard = None if self.client else _accepted.get()
        if heard is not None:
            _accepted.set(None)
            vars(self)[HEARD] = heard

    return init


def _events(original: Any) -> Callable[..., Any]:
    def events(self: Any) -> Any:
        heard: Heard | None = vars(self).get(HEARD)
        return original(self) if heard is None else _heard_events(heard, original(self))

    return events


def _heard_events(heard: Heard, events: Any) -> Any:
    from wsproto.events import Message, Pong

    for event in events:
        if isinstance(event, Pong):
            heard.pong(event.payload)
        elif isinstance(event, Message) and event.message_finished:
            heard.message()
        yield event


# -------------------------------------------------------------------------------------------------- what is patched where


def _patch_protocol(module: Any) -> None:
    _patches.wrap(module.Protocol, "recv_frame", _receiving)
    for name in ("send_text", "send_binary"):
        _patches.wrap(module.Protocol, name, _sending)


def _patch_sync_client(module: Any) -> None:
    _patches.wrap(module.ClientConnection, "handshake", _handshake)
    if hasattr(module, "reconnect"):  # since websockets 17.1; before that a failure to connect has no span
        _patches.wrap(module.reconnect, "connect", _connect)


def _patch_asyncio_client(module: Any) -> None:
    _patches.wrap(module.ClientConnection, "handshake", _handshake_async)
    name = "connect" if hasattr(module.connect, "connect") else "__await_impl__"
    _patches.wrap(module.connect, name, _connect_async)


def _patch_legacy_protocol(module: Any) -> None:
    _patches.wrap(module.WebSocketCommonProtocol, "write_frame", _writing_legacy)
    _patches.wrap(module.WebSocketCommonProtocol, "read_frame", _reading_legacy)


def _patch_legacy_client(module: Any) -> None:
    _patches.wrap(module.WebSocketClientProtocol, "handshake", _handshake_legacy)


def _patch_sync_server(module: Any) -> None:
    websocket_servers.patch_sync(_patches, module.ServerConnection)


def _patch_asyncio_server(module: Any) -> None:
    websocket_servers.patch_async(_patches, module.ServerConnection)


def _patch_wsproto(module: Any) -> None:
    _patches.wrap(module.Connection, "__init__", _made)
    _patches.wrap(module.Connection, "events", _events)


# The modules of the libraries, and what of ours comes last in each.
_PARTS: dict[tuple[str, str], Callable[[Any], None]] = {
    ("websockets.protocol", "Protocol"): _patch_protocol,
    ("websockets.sync.client", "connect"): _patch_sync_client,
    ("websockets.asyncio.client", "connect"): _patch_asyncio_client,
    ("websockets.sync.server", "ServerConnection"): _patch_sync_server,
    ("websockets.asyncio.server", "ServerConnection"): _patch_asyncio_server,
    ("websockets.legacy.protocol", "WebSocketCommonProtocol"): _patch_legacy_protocol,
    ("websockets.legacy.client", "WebSocketClientProtocol"): _patch_legacy_client,
    ("wsproto.connection", "Connection"): _patch_wsproto,
}

LIBRARIES = tuple(name for name, _ in _PARTS)
EACH = True
