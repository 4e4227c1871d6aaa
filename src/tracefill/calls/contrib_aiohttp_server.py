"""Contrib's aiohttp.web instrumentation: its span lasts as long as the response, and carries the request id.

Contrib ends it when the handler has returned; a body that is a generator is read later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from tracefill.context import current
from tracefill.edge.arrivals import KEY
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.aiohttp_server",)

_patches = Patches()


def patch() -> None:
    # What contrib calls first in its span, and with the request.
    _patches.wrap(sys.modules[LIBRARIES[0]], "collect_request_headers_attributes", _adopting)


def unpatch() -> None:
    _patches.undo()


def _adopting(original: Any) -> Callable[..., Any]:
    def collect(request: Any) -> Any:
        arrival = request.get(KEY)
        if arrival is not None:
            otel_context.attach(arrival.adopt(trace.get_current_span(), current()))  # contrib detaches what is older
        return original(request)

    return collect
