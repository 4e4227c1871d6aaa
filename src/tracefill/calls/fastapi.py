"""FastAPI (0.110 and later): a server span for each request, named after its route; see `tracefill.calls.asgi`.

    app = Middleware(FastAPI())         # without install()

Newer versions make a server span themselves. With install() that one stays, and lasts until the background tasks are done;
with the middleware around the application there is ours, and FastAPI's telemetry keeps quiet.
"""

from __future__ import annotations

from tracefill.calls.asgi_spans import Middleware, entering, serving
from tracefill.context import extract, inject, scope
from tracefill.edge.adoption import adopt_fastapi
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "Middleware", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("fastapi.applications",)

_patches = Patches()


def patch() -> None:
    from fastapi.applications import FastAPI  # fastapi.FastAPI is contrib's subclass while that is active

    _patches.wrap(FastAPI, "__call__", entering)
    adopt_fastapi(_patches)


def unpatch() -> None:
    _patches.undo()
    serving.stop()
