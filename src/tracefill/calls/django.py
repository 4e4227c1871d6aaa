"""Django (4.2 and later), served by WSGI or ASGI: a server span for each request, named after its route.

    application = Middleware(get_wsgi_application())        # without install(); tracefill.calls.asgi's for the other

Views, middleware, streamed responses and what runs when a response is closed are inside of the span.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracefill.calls import asgi_spans, wsgi_spans
from tracefill.calls.wsgi_spans import Middleware
from tracefill.context import current, extract, inject, scope
from tracefill.edge.arrivals import KEY, Arrival
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "Middleware", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("django.core.handlers.wsgi", "django.core.handlers.asgi")

_patches = Patches()


def patch() -> None:
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.base import BaseHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.signals import got_request_exception

    _patches.wrap(WSGIHandler, "__call__", _call)
    _patches.wrap(ASGIHandler, "__call__", asgi_spans.entering)
    _patches.wrap(ASGIHandler, "send_response", _send_response)
    _patches.wrap(BaseHandler, "resolve_request", _resolve)
    got_request_exception.connect(_failed)


def unpatch() -> None:
    from django.core.signals import got_request_exception

    _patches.undo()
    got_request_exception.disconnect(_failed)
    wsgi_spans.serving.stop()
    asgi_spans.serving.stop()


def _call(original: Any) -> Callable[..., Any]:
    def call(self: Any, environ: Any, start_response: Any) -> Any:
        if KEY in environ:
            return original(self, environ, start_response)
        return wsgi_spans.serving.entered(self, original)(environ, start_response)

    return call


def _send_response(original: Any) -> Callable[..., Any]:
    async def send_response(self: Any, *args: Any, **kwargs: Any) -> None:
        arrival = current().get(KEY)
        # Contrib's middleware has left its span when the view returned.
        with scope(arrival.inside if isinstance(arrival, Arrival) else current()):
            await original(self, *args, **kwargs)

    return send_response


def _resolve(original: Any) -> Callable[..., Any]:
    def resolve_request(self: Any, request: Any) -> Any:
        match = original(self, request)
        if hasattr(request, "scope"):
            asgi_spans.routed(request.scope, "/" + match.route)
        else:
            wsgi_spans.routed(request.META, "/" + match.route)
        return match

    return resolve_request


def _failed(request: Any = None, **_: Any) -> None:
    error = sys.exc_info()[1]
    if request is None or error is None:
        return
    if hasattr(request, "scope"):
        asgi_spans.failed(request.scope, error)
    else:
        wsgi_spans.failed(request.META, error)
