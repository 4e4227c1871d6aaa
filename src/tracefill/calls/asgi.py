"""ASGI applications (ASGI 3): a server span for each request, its scope over the whole response.

    from tracefill.calls.asgi import Middleware

    app = Middleware(app)           # Gateway(Middleware(app)) at the edge; see tracefill.gateway.asgi

Streamed bodies, background tasks and all that happens on a websocket belong to the request; lifespan passes through.
`install()` puts the same, and request ids, around what servers and frameworks serve: each has a module of its own.
"""

from __future__ import annotations

from tracefill.calls.asgi_spans import Middleware
from tracefill.context import extract, inject, scope

__all__ = ["Middleware", "extract", "inject", "scope"]
