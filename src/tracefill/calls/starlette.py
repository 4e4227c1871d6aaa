"""Starlette (0.37 and later): a server span for each request, named after its route; see `tracefill.calls.asgi`.

    app = Starlette(middleware=[Middleware(tracefill.calls.asgi.Middleware)])       # without install()

Where a program has put Starlette's own OpenTelemetryMiddleware into its stack, that makes the span, and tracefill none.
"""

from __future__ import annotations

import contextlib
import importlib

from tracefill.calls.asgi_spans import Middleware, entering, serving
from tracefill.context import extract, inject, scope
from tracefill.edge.adoption import adopt_starlette
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "Middleware", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("starlette.applications",)

_patches = Patches()


def patch() -> None:
    from starlette.applications import Starlette

    _patches.wrap(Starlette, "__call__", entering)
    with contextlib.suppress(ImportError):  # before Starlette 1.10
        importlib.import_module("starlette.middleware.opentelemetry")
    adopt_starlette(_patches)


def unpatch() -> None:
    _patches.undo()
    serving.stop()
