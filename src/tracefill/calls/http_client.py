"""`http.client`: every request carries the context and has a client span, and so has whatever rides on it (xmlrpc, ...).

    tracefill.install(only=["http_client"])
    connection.request("GET", "/orders")            # connections that exist already do the same

Below requests, urllib3, urllib.request, and whatever else makes spans of its own, none is made; below contrib's, the request id
is passed on. The span lasts from the end of the headers to the beginning of the answer.
Without install(): `headers = {}; inject(headers); connection.request("GET", "/orders", headers=headers)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tracefill._codec import FORMAT_FIELDS
from tracefill.calls.client_spans import Call, Client, pass_on, request_id_left_out
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("http.client",)

_client = Client("http_client")
_patches = Patches()

# On a connection: the request that is being written; the call whose answer has not begun.
_BEGUN = "_tracefill_request"
_SENT = "_tracefill_call"
_OURS = frozenset(name.lower() for fields in FORMAT_FIELDS.values() for name in fields) | {"baggage", "x-request-id"}


def patch() -> None:
    from http.client import HTTPConnection

    _patches.wrap(HTTPConnection, "putrequest", _putrequest)
    _patches.wrap(HTTPConnection, "putheader", _putheader)
    _patches.wrap(HTTPConnection, "endheaders", _endheaders)
    _patches.wrap(HTTPConnection, "getresponse", _getresponse)
    _patches.wrap(HTTPConnection, "close", _close)


def unpatch() -> None:
    _patches.undo()


class _Request:
    """A request whose headers are not complete yet."""

    __slots__ = ("headers", "held", "method", "url")

    def __init__(self, method: str, url: str) -> None:
        self.method = method
        self.url = url
        self.headers: list[tuple[str, str]] = []  # as the caller put them
        self.held: dict[str, str] = {}  # those of our own names: they go last, when ours have replaced them

    def holds(self, header: Any, values: tuple[Any, ...]) -> bool:
        """Takes note of a header that the caller puts; True when it has to wait."""
        name, value = _text(header), ", ".join(map(_text, values))
        self.headers.append((name, value))
        if name.lower() not in _OURS:
            return False
        self.held[name] = value
        return True

    def begin(self, connection: Any) -> Call | None:
        """The caller has put all his headers."""
        call = _client.begin(self.method, self.url, self.headers)
        if call is not None:
            call.inject(self.held)
        else:
            pass_on(self.held, request_id_left_out())
        for name, value in self.held.items():
            connection.putheader(name, value)
        return call


def _putrequest(original: Any) -> Callable[..., None]:
    def putrequest(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        original(self, method, url, *args, **kwargs)
        _over(self)
        if _client.takes() or request_id_left_out() is not None:
            vars(self)[_BEGUN] = _Request(method, _absolute(self, url))

    return putrequest


def _putheader(original: Any) -> Callable[..., None]:
    def putheader(self: Any, header: Any, *values: Any) -> None:
        request = vars(self).get(_BEGUN)
        if request is None or not request.holds(header, values):
            original(self, header, *values)

    return putheader


def _endheaders(original: Any) -> Callable[..., None]:
    def endheaders(self: Any, *args: Any, **kwargs: Any) -> None:
        request = vars(self).pop(_BEGUN, None)
        call = request.begin(self) if request is not None else None
        with _ending(call):
            original(self, *args, **kwargs)
        if call is not None:
            vars(self)[_SENT] = call

    return endheaders


def _getresponse(original: Any) -> Callable[..., Any]:
    def getresponse(self: Any) -> Any:
        call = vars(self).pop(_SENT, None)
        with _ending(call):
            response = original(self)
        if call is not None:
            call.responded(response.status, response.version, response.headers)
            call.end()
        return response

    return getresponse


def _close(original: Any) -> Callable[..., None]:
    def close(self: Any) -> None:
        _over(self)
        original(self)

    return close


def _over(connection: Any) -> None:
    """What is left of a request whose answer nobody has read."""
    vars(connection).pop(_BEGUN, None)
    call = vars(connection).pop(_SENT, None)
    if call is not None:
        call.end()


@contextlib.contextmanager
def _ending(call: Call | None) -> Iterator[None]:
    """An error in here ends the call."""
    try:
        yield
    except BaseException as error:
        if call is not None:
            call.end(error)
        raise


def _absolute(connection: Any, url: str) -> str:
    if not url.startswith("/"):
        return url  # to a proxy
    scheme = "https" if connection.default_port == 443 else "http"
    host, port = connection.host, connection.port
    if getattr(connection, "_tunnel_host", None):
        host, port = connection._tunnel_host, connection._tunnel_port
    shown = "" if port == connection.default_port or port is None else f":{port}"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{shown}{url}"


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
