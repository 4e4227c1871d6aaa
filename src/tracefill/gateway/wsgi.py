"""The gateway of a WSGI application: X-Request-ID and the trace id are one, from here on.

from tracefill.gateway.wsgi import Gateway

app = Gateway(Middleware(app))                  # outside of whatever makes the server span
app = Gateway(app, trusted=from_inside)         # strangers' traces are linked, not continued
"""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill import tags
from tracefill.context import extract, inject, scope
from tracefill.edge import request_ids
from tracefill.edge.arrivals import Arrival
from tracefill.edge.wsgi import Edge, Environ, WSGIApplication, as_environ, path_of
from tracefill.gateway.identity import OURS, STRANGE, STRANGE_PREFIXES, Trust, identify, is_trusted, unsampled, written

__all__ = ["Gateway", "extract", "inject", "scope"]


class Gateway(Edge):
    """The application behind a gateway.

    A valid trace context of the caller's is continued; else a valid X-Request-ID (32 hex digits, or a UUID) names the trace;
    else both are made. The application sees both in its environ, in whatever format they came; the response carries the id.
    `trusted`: whether callers are believed (True, False or a function of the environ); whoever is not gets a trace of his own
    that is linked to his, and his request id is put on record.
    """

    def __init__(self, app: WSGIApplication, *, trusted: Trust = True) -> None:
        super().__init__(app)
        self._trusted = trusted
        request_ids.report()

    def _meet(self, environ: Environ, base: Context | None, others: bool) -> tuple[Environ, Arrival]:
        trusted = is_trusted(self._trusted, environ)
        sent = environ.get("HTTP_X_REQUEST_ID")
        arrival = identify(extract(environ), sent, trusted, others, self.spanned)
        if tags.declared():
            arrival.bring_tags(environ, path_of(environ), trusted)
        inner = _without(environ, _OURS) if trusted else _stripped(environ)
        inner.update(as_environ(written(arrival, others)))

        def deny(span: Span) -> None:
            traceparent = unsampled(arrival, span)
            if traceparent is not None:
                inner["HTTP_TRACEPARENT"] = traceparent

        arrival.on_begin = deny if arrival.trace_id else None
        return inner, arrival


_OURS = tuple(as_environ(dict.fromkeys(OURS, "")))
_STRANGE = tuple(as_environ(dict.fromkeys(STRANGE, "")))
_STRANGE_PREFIXES = tuple(as_environ(dict.fromkeys(STRANGE_PREFIXES, "")))


def _without(environ: Environ, names: Iterable[str]) -> Environ:
    inner = dict(environ)
    for name in names:
        inner.pop(name, None)
    return inner


def _stripped(environ: Environ) -> Environ:
    return _without(environ, [*_STRANGE, *(name for name in environ if name.startswith(_STRANGE_PREFIXES))])
