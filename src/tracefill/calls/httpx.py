"""httpx (0.23 and later), sync and async: every request carries the context, and has a client span for each time it is sent.

    tracefill.install(only=["httpx"])
    httpx.get("http://shop/orders")                         # clients that exist already do the same, whatever their transport

A redirect is another span, beside the first. With contrib's instrumentation on, only transports that it does not know (ASGI,
WSGI, mocks) are traced here; requests by a transport of your own carry the context, whatever it rides on.
Without install(): `headers = {}; inject(headers); httpx.get(url, headers=headers)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Call, Client, pass_on, request_id_left_out
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches, contrib_active

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("httpx",)

_client = Client("httpx")
_patches = Patches()

# On a request that stands for another: for the how manieth time it is sent again.
_RESENDS = "_tracefill_resends"
_VERSIONS = {"HTTP/1.0": 10, "HTTP/1.1": 11, "HTTP/2": 20}


def patch() -> None:
    import httpx

    _patches.wrap(httpx.Client, "_send_single_request", _send)
    _patches.wrap(httpx.AsyncClient, "_send_single_request", _send_async)
    for kind in (httpx.Client, httpx.AsyncClient):
        _patches.wrap(kind, "_build_redirect_request", _build_redirect_request)


def unpatch() -> None:
    _patches.undo()


def _send(original: Any) -> Callable[..., Any]:
    def send(self: Any, request: Any) -> Any:
        call = _begin(self, request)
        if call is None:
            return original(self, _left_alone(self, request))
        with call:
            response = original(self, _with_headers(request, call))
            call.responded(response.status_code, _VERSIONS.get(response.http_version), response.headers.multi_items())
        return response

    return send


def _send_async(original: Any) -> Callable[..., Any]:
    async def send(self: Any, request: Any) -> Any:
        call = _begin(self, request)
        if call is None:
            return await original(self, _left_alone(self, request))
        with call:
            response = await original(self, _with_headers(request, call))
            call.responded(response.status_code, _VERSIONS.get(response.http_version), response.headers.multi_items())
        return response

    return send


def _build_redirect_request(original: Any) -> Callable[..., Any]:
    def build(self: Any, request: Any, response: Any) -> Any:
        made = original(self, request, response)
        setattr(made, _RESENDS, getattr(request, _RESENDS, 0) + 1)
        return made

    return build


def _begin(client: Any, request: Any) -> Call | None:
    transport = client._transport_for_url(request.url)
    if _is_contribs(client, transport):
        return None
    call = _client.begin(
        request.method, str(request.url), request.headers.multi_items(), resends=getattr(request, _RESENDS, 0)
    )
    if call is not None and _is_users(transport):
        call.cover()
    return call


def _is_contribs(client: Any, transport: Any) -> bool:
    """True when contrib traces this client, or the transport that the request takes."""
    if getattr(client, "_is_instrumented_by_opentelemetry", False):
        return True
    if type(transport).__module__.startswith("opentelemetry."):
        return True
    if not contrib_active("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor"):
        return False
    import httpx

    return not isinstance(transport, (httpx.ASGITransport, httpx.WSGITransport, httpx.MockTransport))


def _is_users(transport: Any) -> bool:
    """True for a transport of which nobody knows what it rides on."""
    return type(transport).__module__.partition(".")[0] not in ("httpx", "opentelemetry")


def _left_alone(client: Any, request: Any) -> Any:
    """A request that is not for us to trace, with what contrib leaves out: the request id, and the caller's position where a
    transport of his own may ride on something else than httpx's."""
    request_id = request_id_left_out()
    is_left_out = (
        _client.takes()
        and contrib_active("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor")
        and _is_users(client._transport_for_url(request.url))
    )
    if request_id is None and not is_left_out:
        return request
    sent = _copied(request)
    if is_left_out:
        inject(sent.headers)
    pass_on(sent.headers, request_id)
    return sent


def _with_headers(request: Any, call: Call) -> Any:
    """The request with our headers: the caller's own may be sent once more, from somewhere else."""
    sent = _copied(request)
    call.inject(sent.headers)
    return sent


def _copied(request: Any) -> Any:
    """The request, with headers of its own."""
    sent = object.__new__(type(request))  # copy.copy would leave the body behind
    vars(sent).update(vars(request))
    sent.headers = request.headers.copy()
    return sent
