"""The edge of a WSGI application: request ids in, request ids out, the server span of whoever makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.context import Context

from tracefill.context import current, extract, scope
from tracefill.edge import root_ids
from tracefill.edge.arrivals import KEY, Arrival, further_in
from tracefill.edge.bodies import covered
from tracefill.edge.makers import Maker, others
from tracefill.edge.request_ids import in_context
from tracefill.formats import TRACECONTEXT

__all__ = ["Edge", "StartResponse", "WSGIApplication", "live_context"]

StartResponse = Callable[..., Any]
WSGIApplication = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
