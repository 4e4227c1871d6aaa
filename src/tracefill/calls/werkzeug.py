"""Werkzeug's development server (2.3 and later), which is Flask's too: see `tracefill.calls.wsgi`."""

from __future__ import annotations

from tracefill.calls.wsgi_spans import serving
from tracefill.edge.entrances import ServerAttribute

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("werkzeug.serving",)

_server = ServerAttribute(serving, LIBRARIES[0], "BaseWSGIServer", "app")
patch, unpatch = _server.patch, _server.unpatch
