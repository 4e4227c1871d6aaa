"""Contrib's ASGI middleware, which its instrumentations of Starlette and FastAPI use too: its span lasts as long as the request.

Contrib ends it with the last message of the response; background tasks and what a handler has started come later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracefill.calls.asgi_spans import entering, serving
from tracefill.edge.adoption import adopt_contrib
from tracefill.edge.announcements import HEARD, hearing
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.asgi",)

_patches = Patches()


def patch() -> None:
    adopt_contrib(_patches, LIBRARIES[0])
    middleware = sys.modules[LIBRARIES[0]].OpenTelemetryMiddleware
    _patches.wrap(middleware, "__call__", entering)
    _patches.wrap(middleware, "_get_otel_receive", _get_otel_receive)


def unpatch() -> None:
    _patches.undo()
    serving.stop()


def _get_otel_receive(original: Any) -> Callable[..., Any]:
    def get(self: Any, server_span_name: Any, asgi_scope: Any, receive: Any) -> Any:
        received = original(self, server_span_name, asgi_scope, receive)
        heard = asgi_scope.get(HEARD)
        # Contrib's span of the receiving ends with it, and takes the message's context along.
        return received if heard is None else hearing(heard, received, heard.enter)

    return get
