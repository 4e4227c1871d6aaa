"""Trace context over every boundary of a Python service: the public names.

>>> import tracefill
>>> context = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> headers = {}
>>> tracefill.inject(headers, context)
>>> headers["traceparent"]
'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
"""

try:
    from tracefill import _codec as _codec
except ImportError as error:
    from importlib.util import find_spec

    if find_spec("tracefill._codec") is not None:
        raise
    raise ImportError(
        "tracefill's compiled core (tracefill._codec) is missing: this copy was not built for this Python. "
        "In a checkout run `pip install .` (it needs a C compiler); elsewhere `pip install --force-reinstall tracefill`."
    ) from error

from tracefill import context, formats, snapshots
from tracefill._codec import (
    Snapshot,
    SnapshotPool,
    SnapshotReleased,
    TracefillError,
    bind,
    extract,
    inject,
    snapshot,
)
from tracefill.patches import install, installed, uninstall
from tracefill.snapshots import go
from tracefill.startup import setup

__all__ = [
    "Snapshot",
    "SnapshotPool",
    "SnapshotReleased",
    "TracefillError",
    "bind",
    "context",
    "extract",
    "formats",
    "go",
    "inject",
    "install",
    "installed",
    "setup",
    "snapshot",
    "snapshots",
    "uninstall",
]
__version__ = "0.1.0"
