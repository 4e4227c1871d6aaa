"""Contrib's ASGI middleware, which its instrumentations of Starlette and FastAPI use too: its span lasts as long as the request.

Contrib ends it with the last message of the response; background tasks and what a handler has started come later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracefill.calls.asgi_spans import serving
from tracefill.edge.adoption import adopt_contrib
from tracefill.edge.announcements import HEARD, hearing
from tracefill.edge.arrivals import KEY
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.asgi",)

_patches = Patches()


def patch() -> None:
    adopt_contrib(_patches, LIBRARIES[0])
    middleware = sys.modules[LIBRARIES[0]].OpenTelemetryMiddleware
    _patches.wrap(middleware, "__call__", _call)
    _patches.wrap(middleware, "_get_otel_receive", _get_otel_receive)


def unpatch() -> None:
    _patches.undo()
    serving.stop()


def _call(original: Any) -> Callable[..., Any]:
    async def call(self: Any, asgi_scope: Any, receive: Any, send: Any) -> None:
        if KEY in asgi_scope:
            await original(self, asgi_scope, receive, send)
        else:
            await serving.entered(self, original)(asgi_scope, receive, send)

    return call


def _get_otel_receive(original: Any) -> Callable[..., Any]:
    def get(self: Any, server_span_name: Any, asgi_scope: Any, receive: Any) -> Any:
        received = original(self, server_span_name, asgi_scope, receive)
        heard = asgi_scope.get(HEARD)
        # Contrib's span of the receiving ends with it, and takes the message's context along.
        return received if heard is None else hearing(heard, received, heard.enter)

    return get
