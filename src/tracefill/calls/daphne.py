"""daphne (4 and later): see `tracefill.calls.asgi`."""

from __future__ import annotations

from tracefill.calls.asgi_spans import serving
from tracefill.edge.entrances import ServerAttribute

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("daphne.server",)

_server = ServerAttribute(serving, LIBRARIES[0], "Server", "application")
patch, unpatch = _server.patch, _server.unpatch
