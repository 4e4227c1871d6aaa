"""aiohttp's client (3.8 and later): every request carries the context, and has a client span for each time that it is sent.

    tracefill.install(only=["aiohttp_client"])
    async with session.get("http://shop/orders"): ...       # sessions that exist already do the same

A redirect is another span, beside the first. With contrib's instrumentation on, only sessions that it has missed (older than
itself) are traced here.
Without install(): `headers = {}; inject(headers); session.get(url, headers=headers)`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Call, Client, pass_on, request_id_left_out
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("aiohttp.client",)

_client = Client("aiohttp_client")
_patches = Patches()


def patch() -> None:
    from aiohttp.client import ClientSession
    from aiohttp.client_reqrep import ClientRequest, ClientResponse

    _patches.wrap(ClientSession, "_request", _request)
    _patches.wrap(ClientRequest, "__init__", _begin)
    _patches.wrap(ClientResponse, "start", _start)


def unpatch() -> None:
    _patches.undo()


class _Sending:
    """What one `session.get(...)` is at: the latest of the requests that it takes."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.requests = 0

    def begin(self, request: Any) -> None:
        if self.call is not None:
            self.call.end()
        self.call = _client.begin(request.method, str(request.url), request.headers.items(), resends=self.requests)
        self.requests += 1
        if self.call is not None:
            self.call.inject(request.headers)

    def end(self, error: BaseException | None = None) -> None:
        if self.call is not None:
            self.call.end(error)


# The caller's own context stays current: his middlewares and his bodies run in between.
_sending: contextvars.ContextVar[_Sending | None] = contextvars.ContextVar("tracefill_aiohttp_sending", default=None)


def _request(original: Any) -> Callable[..., Any]:
    async def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        sending = None if _is_contribs(self) else _Sending()
        token = _sending.set(sending)
        try:
            response = await original(self, *args, **kwargs)
        except BaseException as error:
            if sending is not None:
                sending.end(None if hasattr(error, "request_info") and hasattr(error, "status") else error)
            raise
        finally:
            _sending.reset(token)
        if sending is not None:
            sending.end()
        return response

    return request


def _is_contribs(session: Any) -> bool:
    return any(
        getattr(config, "_is_instrumented_by_opentelemetry", False) for config in getattr(session, "_trace_configs", ())
    )


def _begin(original: Any) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        sending = _sending.get()
        if sending is not None:
            sending.begin(self)
        else:
            pass_on(self.headers, request_id_left_out())

    return init


def _start(original: Any) -> Callable[..., Any]:
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        sending = _sending.get()
        try:
            response = await original(self, *args, **kwargs)
        except BaseException as error:  # aiohttp may try once more
            if sending is not None:
                sending.end(error)
            raise
        if sending is not None and sending.call is not None:
            version = self.version.major * 10 + self.version.minor if self.version is not None else None
            sending.call.responded(self.status, version, self.headers.items())
        return response

    return start
