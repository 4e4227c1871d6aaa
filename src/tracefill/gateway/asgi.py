"""The gateway of an ASGI application: X-Request-ID and the trace id are one, from here on.

from tracefill.gateway.asgi import Gateway

app = Gateway(Middleware(app))                  # outside of whatever makes the server span
app = Gateway(FastAPI(), trusted=from_inside)   # FastAPI makes its own; strangers' traces are linked, not continued
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill import tags
from tracefill._codec import find_header
from tracefill.context import extract, inject, scope
from tracefill.edge import request_ids
from tracefill.edge.arrivals import Arrival
from tracefill.edge.asgi import ASGIApplication, Edge, Scope, as_pairs
from tracefill.gateway.identity import OURS, STRANGE, STRANGE_PREFIXES, Trust, identify, is_trusted, unsampled, written

__all__ = ["Gateway", "extract", "inject", "scope"]


class Gateway(Edge):
    """The application behind a gateway.

    A valid trace context of the caller's is continued; else a valid X-Request-ID (32 hex digits, or a UUID) names the trace;
    else both are made. The application sees both in its headers, in whatever format they came; the response carries the id.
    `trusted`: whether callers are believed (True, False or a function of the scope); whoever is not gets a trace of his own
    that is linked to his, and his request id is put on record.
    """

    def __init__(self, app: ASGIApplication, *, trusted: Trust = True) -> None:
        super().__init__(app)
        self._trusted = trusted
        request_ids.report()

    def _meet(self, asgi_scope: Scope, base: Context | None, others: bool) -> tuple[Scope, Arrival]:
        trusted = is_trusted(self._trusted, asgi_scope)
        lines = list(asgi_scope.get("headers", ()))
        arrival = identify(extract(lines), find_header(lines, b"x-request-id"), trusted, others, self.spanned)
        if tags.declared():
            arrival.bring_tags(lines, asgi_scope.get("path", ""), trusted)
        headers = [*as_pairs(written(arrival, others)), *(_believed(lines) if trusted else _stripped(lines))]

        def deny(span: Span) -> None:
            traceparent = unsampled(arrival, span)
            if traceparent is not None:
                headers[:] = [
                    (name, traceparent.encode() if name == b"traceparent" else value) for name, value in headers
                ]

        arrival.on_begin = deny if arrival.trace_id else None
        return {**asgi_scope, "headers": headers}, arrival


Lines = list[tuple[bytes, bytes]]

_OURS = frozenset(name.encode() for name in OURS)
_STRANGE = frozenset(name.encode() for name in STRANGE)
_STRANGE_PREFIXES = tuple(prefix.encode() for prefix in STRANGE_PREFIXES)


def _believed(lines: Lines) -> Lines:
    return [line for line in lines if line[0] not in _OURS]


def _stripped(lines: Lines) -> Lines:
    return [line for line in lines if line[0] not in _STRANGE and not line[0].startswith(_STRANGE_PREFIXES)]
