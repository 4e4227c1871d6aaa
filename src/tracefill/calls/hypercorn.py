"""hypercorn (0.14 and later): see `tracefill.calls.asgi`, and `tracefill.calls.wsgi` for WSGI applications that it serves."""

from __future__ import annotations

from typing import Any

from tracefill.calls import asgi_spans, wsgi_spans
from tracefill.edge.entrances import wrap_attribute
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("hypercorn.app_wrappers",)

_patches = Patches()


def patch() -> None:
    from hypercorn.app_wrappers import ASGIWrapper, WSGIWrapper

    wrap_attribute(_patches, ASGIWrapper, "app", _served_asynchronously)
    wrap_attribute(_patches, WSGIWrapper, "app", _served)


def unpatch() -> None:
    _patches.undo()
    wsgi_spans.serving.stop()
    asgi_spans.serving.stop()


def _served(_: Any, app: Any) -> Any:
    return wsgi_spans.serving.served(app)


def _served_asynchronously(_: Any, app: Any) -> Any:
    return asgi_spans.serving.served(app)
