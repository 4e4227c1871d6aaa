"""waitress (2 and later): see `tracefill.calls.wsgi`."""

from __future__ import annotations

from tracefill.calls.wsgi_spans import serving
from tracefill.edge.entrances import ServerAttribute

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("waitress.server",)

_server = ServerAttribute(serving, LIBRARIES[0], "BaseWSGIServer", "application")
patch, unpatch = _server.patch, _server.unpatch
