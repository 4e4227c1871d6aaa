"""eventlet's WSGI server (0.33 and later): see `tracefill.calls.wsgi`."""

from __future__ import annotations

from tracefill.calls.wsgi_spans import serving
from tracefill.edge.entrances import ServerAttribute

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("eventlet.wsgi",)

_server = ServerAttribute(serving, LIBRARIES[0], "Server", "app")
patch, unpatch = _server.patch, _server.unpatch
