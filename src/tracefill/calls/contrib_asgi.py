"""Contrib's ASGI middleware, which its instrumentations of Starlette and FastAPI use too: its span lasts as long as the request.

Contrib ends it with the last message of the response; background tasks and what a handler has started come later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracefill.calls.asgi_spans import serving
from tracefill.edge.adoption import adopt_contrib
from tracefill.edge.arrivals import KEY
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.asgi",)

_patches = Patches()


def patch() -> None:
    adopt_contrib(_patches, LIBRARIES[0])
    _patches.wrap(sys.modules[LIBRARIES[0]].OpenTelemetryMiddleware, "__call__", _call)


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
