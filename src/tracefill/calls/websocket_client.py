"""websocket-client (1.0 and later, `import websocket`): a client span for each handshake, and messages of the span that sends them.

    tracefill.install(only=["websocket_client"])
    socket = websocket.create_connection("ws://shop/orders")        # so do WebSocket().connect() and WebSocketApp

Redirects belong to the span of the first handshake. The messages are announced as `tracefill.edge.announcements` says.
Without install(): `headers = {}; inject(headers); websocket.create_connection(url, header=headers)`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Call, Client
from tracefill.context import extract, inject, scope
from tracefill.edge.announcements import HEADER, VERSION, Announcer
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("websocket._core",)

_logger = logging.getLogger("tracefill")
_client = Client("websocket_client")
_patches = Patches()

# Where a connection keeps its Announcer, and the lock under which it announces: any thread may send.
_ANNOUNCER = "tracefill.announcer"


def patch() -> None:
    from websocket._core import WebSocket

    _patches.wrap(WebSocket, "connect", _connect)
    _patches.wrap(WebSocket, "send_frame", _send_frame)


def unpatch() -> None:
    _patches.undo()


def _connect(original: Any) -> Callable[..., Any]:
    def connect(self: Any, url: str, **options: Any) -> Any:
        vars(self).pop(_ANNOUNCER, None)
        given = _pairs(options.get("header"))
        call = _client.begin("GET", url, given)
        if call is None:
            return original(self, url, **options)
        options["header"] = _with_ours(options.get("header"), given, call)
        try:
            result = original(self, url, **options)
        except BaseException as error:
            _fail(call, error)
            raise
        _answered(self, call)
        return result

    return connect


def _answered(socket: Any, call: Call) -> None:
    response = socket.handshake_response
    if response is not None:
        call.responded(response.status, 11, list(response.headers.items()))
        if response.headers.get(HEADER) == VERSION:
            vars(socket)[_ANNOUNCER] = (Announcer(call.outer, call.inside), threading.Lock())
    call.end()


def _fail(call: Call, error: BaseException) -> None:
    status = getattr(error, "status_code", None)
    if status is None:
        call.end(error)
    else:
        call.responded(status, 11)
        call.end()


def _pairs(header: Any) -> list[tuple[str, str]]:
    """A copy of the caller's headers: a dict, or a list of lines."""
    if isinstance(header, dict):
        return [(name, value) for name, value in header.items() if value is not None]
    lines = (line.partition(":") for line in header or ())
    return [(name, value.strip()) for name, _, value in lines]


def _with_ours(header: Any, given: list[tuple[str, str]], call: Call) -> Any:
    """The headers in the shape that they were given: the library looks into a dict."""
    sent = [*given, (HEADER, VERSION)]
    call.inject(sent, follows=True)
    return dict(sent) if isinstance(header, dict) else [f"{name}: {value}" for name, value in sent]


def _send_frame(original: Any) -> Callable[..., Any]:
    def send_frame(self: Any, frame: Any) -> Any:
        announcing = vars(self).get(_ANNOUNCER)
        if announcing is None or frame.opcode not in (frame.OPCODE_TEXT, frame.OPCODE_BINARY):
            return original(self, frame)
        announcer, lock = announcing
        with lock:
            before = _put_before(frame, announcer)
            return original(self, frame) - before

    return send_frame


def _put_before(frame: Any, announcer: Announcer) -> int:
    """Lets the frame begin with an announcement where one is due, so that both are one write; returns how long that is."""
    try:
        payload = announcer.due()
        if payload is None:
            return 0
        announcement = type(frame).create_frame(payload, frame.OPCODE_PONG).format()
        format_frame = frame.format
        frame.format = lambda: announcement + format_frame()
        return len(announcement)
    except Exception:  # ours; the message has to go
        _logger.debug("a websocket message was not announced", exc_info=True)
        return 0
