"""gunicorn (20 and later): see `tracefill.calls.wsgi`, and `tracefill.calls.asgi` for its `asgi` worker."""

from __future__ import annotations

import sys
from typing import Any

from tracefill.calls import asgi_spans, wsgi_spans
from tracefill.edge.entrances import wrap_attribute
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("gunicorn.workers.base",)

# Others (uvicorn's, tornado's) take what is not a WSGI application from the same attribute.
_WSGI_WORKERS = {"gunicorn.workers.sync", "gunicorn.workers.gthread", "gunicorn.workers.base_async"}

_patches = Patches()


def patch() -> None:
    Worker = sys.modules[LIBRARIES[0]].Worker
    wrap_attribute(_patches, Worker, "wsgi", _served)
    wrap_attribute(_patches, Worker, "asgi", _served_asynchronously)


def unpatch() -> None:
    _patches.undo()
    wsgi_spans.serving.stop()
    asgi_spans.serving.stop()


def _served(worker: Any, app: Any) -> Any:
    is_wsgi = any(kind.__module__ in _WSGI_WORKERS for kind in type(worker).__mro__)
    return wsgi_spans.serving.served(app) if is_wsgi else app


def _served_asynchronously(_: Any, app: Any) -> Any:
    return asgi_spans.serving.served(app)
