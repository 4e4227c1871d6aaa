"""WSGI applications (PEP 3333): a server span for each request, its scope over the whole response.

    from tracefill.calls.wsgi import Middleware

    app = Middleware(app)           # Gateway(Middleware(app)) at the edge; see tracefill.gateway.wsgi

The body belongs to the request however it is read: after the application has returned, by another thread, half, or not at all.
`install()` puts the same, and request ids, around what wsgiref serves; other servers and frameworks have modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.calls.wsgi_spans import Middleware, serving
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "Middleware", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("wsgiref.handlers",)

_patches = Patches()


def patch() -> None:
    """Every application that a handler of wsgiref runs, and so Django's and many a test's server."""
    from wsgiref.handlers import BaseHandler

    _patches.wrap(BaseHandler, "run", _run)


def unpatch() -> None:
    _patches.undo()
    serving.stop()


def _run(original: Any) -> Callable[..., None]:
    def run(self: Any, application: Any) -> None:
        original(self, serving.served(application))

    return run
