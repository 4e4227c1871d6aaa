"""`urllib.request`: every request over HTTP carries the context, and has a client span for each time that it is sent.

    tracefill.install(only=["urllib"])
    urllib.request.urlopen("http://shop/orders")            # openers that exist already do the same

A redirect is another span, beside the first.
Without install(): `headers = {}; inject(headers); urlopen(Request(url, headers=headers))`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Call, Client
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("urllib.request",)

_client = Client(
    "urllib",
    carried_by=("http_client",),
    contrib=("opentelemetry.instrumentation.urllib", "URLLibInstrumentor"),
)
_patches = Patches()


def patch() -> None:
    from urllib.request import OpenerDirector

    # `open` comes back to itself for redirects and for answers to a password prompt; `_open` is one exchange.
    _patches.wrap(OpenerDirector, "_open", _open)


def unpatch() -> None:
    _patches.undo()


def _open(original: Any) -> Callable[..., Any]:
    def _open(self: Any, req: Any, data: Any = None) -> Any:
        call = _begin(req)
        if call is None:
            return original(self, req, data)
        with call:
            response = original(self, _with_headers(req, call), data)
            status = getattr(response, "status", None)
            if isinstance(status, int):
                call.responded(status, getattr(response, "version", None), response.headers)
        return response

    return _open


def _begin(request: Any) -> Call | None:
    if request.type not in ("http", "https"):
        return None
    resends = sum(getattr(request, "redirect_dict", {}).values())
    return _client.begin(request.get_method(), request.full_url, request.headers, resends=resends)


def _with_headers(request: Any, call: Call) -> Any:
    """The request with our headers: the caller's own may be sent once more, from somewhere else."""
    own = {**request.unredirected_hdrs, **request.headers}
    changed = {**own}
    call.inject(changed)
    sent = copy.copy(request)
    sent.headers = {name: value for name, value in request.headers.items() if name in changed}
    sent.unredirected_hdrs = {name: value for name, value in request.unredirected_hdrs.items() if name in changed}
    sent.unredirected_hdrs.update({name: value for name, value in changed.items() if own.get(name) != value})
    return sent
