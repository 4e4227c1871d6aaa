"""requests (2.20 and later): every request carries the context, and has a client span for each time that it is sent.

    tracefill.install(only=["requests"])
    requests.get("http://shop/orders")                      # so do sessions that exist already

A redirect is another span, beside the first. Response hooks run in the context of whoever called.
Without install(): `headers = {}; inject(headers); requests.get(url, headers=headers)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Call, Client, in_progress, take_off_stale, unmark
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("requests.sessions",)

_client = Client(
    "requests",
    carried_by=("urllib3", "http_client"),
    contrib=("opentelemetry.instrumentation.requests", "RequestsInstrumentor"),
)
_MARK = "opentelemetry_instrumentation_requests_applied"
_patches = Patches()


def patch() -> None:
    from requests import adapters, sessions

    _patches.wrap(sessions.Session, "send", _send)
    unmark(sessions.Session, "send", _MARK)
    _patches.wrap(sessions.SessionRedirectMixin, "resolve_redirects", _resolve_redirects)
    _patches.wrap(sessions, "dispatch_hook", _dispatch_hook)
    _patches.wrap(adapters.HTTPAdapter, "send", _adapter_send)


def unpatch() -> None:
    from requests.sessions import Session

    _patches.undo()
    take_off_stale(_client, Session, "send", _MARK)


def _send(original: Any) -> Callable[..., Any]:
    def send(self: Any, request: Any, **kwargs: Any) -> Any:
        call = _begin(request)
        if call is None:
            return original(self, request, **kwargs)
        with call:
            response = original(self, _with_headers(request, call), **kwargs)
            _responded(call, response)
        return response

    return send


def _begin(request: Any) -> Call | None:
    method, url = getattr(request, "method", None), getattr(request, "url", None)
    if not isinstance(method, str) or not isinstance(url, str) or not hasattr(request, "copy"):
        return None  # no PreparedRequest, which requests itself will say
    before = in_progress(_client)
    if before is not None and before.is_over:  # a redirect of it
        before.resends += 1
        return _client.begin(method, url, request.headers, context=before.outer, resends=before.resends)
    return _client.begin(method, url, request.headers)


def _with_headers(request: Any, call: Call) -> Any:
    """The request with our headers; the caller may send his own once more, from somewhere else."""
    sent = copy.copy(request)
    sent.headers = request.headers.copy() if request.headers is not None else {}
    call.inject(sent.headers)
    return sent


def _resolve_redirects(original: Any) -> Callable[..., Any]:
    def resolve_redirects(self: Any, resp: Any, *args: Any, **kwargs: Any) -> Any:
        call = in_progress(_client)
        if call is not None and self.get_redirect_target(resp):
            _responded(call, resp)
            call.end()
        return original(self, resp, *args, **kwargs)

    return resolve_redirects


def _dispatch_hook(original: Any) -> Callable[..., Any]:
    def dispatch_hook(*args: Any, **kwargs: Any) -> Any:
        context = _client.users_context()
        if context is None:
            return original(*args, **kwargs)
        with scope(context):
            return original(*args, **kwargs)

    return dispatch_hook


def _adapter_send(original: Any) -> Callable[..., Any]:
    """A hook that answers a password prompt past the session: for contrib, that belongs to the request that was asked."""

    def send(*args: Any, **kwargs: Any) -> Any:
        context = _client.contribs_context()
        if context is None:
            return original(*args, **kwargs)
        with scope(context):
            return original(*args, **kwargs)

    return send


def _responded(call: Call, response: Any) -> None:
    status = getattr(response, "status_code", None)
    if isinstance(status, int):
        raw = getattr(response, "raw", None)
        call.responded(status, getattr(raw, "version", None), getattr(response, "headers", ()))
