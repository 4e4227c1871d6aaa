"""What both gateways do with a caller: believe him or not, and say who the request is in its headers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from tracefill._codec import Snapshot
from tracefill.edge import makers, root_ids
from tracefill.edge.adoption import adopt_all
from tracefill.edge.arrivals import Arrival, at_edge, from_stranger
from tracefill.formats import FORMATS, TRACECONTEXT
from tracefill.wrapping import Patches

__all__ = ["OURS", "STRANGE", "STRANGE_PREFIXES", "Trust", "identify", "is_trusted", "unsampled", "written"]

#: True, False, or a function of the WSGI environ or the ASGI scope.
Trust = bool | Callable[[Any], object]

_logger = logging.getLogger("tracefill")
_patches = Patches()

#: Headers that the gateway writes itself, and those that it takes off the request of a caller who is not trusted.
OURS = frozenset({"x-request-id", *TRACECONTEXT.fields})
STRANGE = OURS | {"baggage"} | {field for row in FORMATS.values() for field in row.fields}
STRANGE_PREFIXES = ("uberctx-", "ot-baggage-")


def is_trusted(trust: Trust, request: Any) -> bool:
    """Whether the caller of this request is believed; nobody is whom the program's own function fails to judge."""
    if isinstance(trust, bool):
        return trust
    try:
        return bool(trust(request))
    except Exception:
        _logger.warning("the trust of a caller could not be told", exc_info=True)
        return False


def identify(context: Context, sent: str | bytes | None, trusted: bool, others: bool, spanned: Any) -> Arrival:
    """Who the request is: see `edge.arrivals`. Where nobody within makes a server span, the context stands in for one."""
    arrival = at_edge(context, sent) if trusted else from_stranger(context, sent)
    if others:
        adopt_all(_patches)
    elif arrival.trace_id and not makers.has_middleware(spanned):
        position = Snapshot(arrival.trace_id, arrival.span_id, flags=_flags(arrival.trace_id))
        arrival.context = arrival.inside = position.to_context(arrival.context)
        arrival.trace_id = 0
    return arrival


def written(arrival: Arrival, others: bool) -> dict[str, str]:
    """The headers that say who the request is.

    A new trace is written down too, as the position that its root span is going to have. Only where that span is made by
    somebody else it is not: he would take it for a parent that nobody has recorded. He gets the trace id all the same.
    """
    headers = {"x-request-id": str(arrival.request_id)}
    if not arrival.trace_id:
        headers.update(arrival.written())
    elif not (others and root_ids.can_choose()):
        headers["traceparent"] = _traceparent(arrival, 1)
    return headers


def unsampled(arrival: Arrival, span: Span) -> str | None:
    """The traceparent to write in the place of the one that was, when the new trace is not going to be recorded."""
    return None if span.get_span_context().trace_flags.sampled else _traceparent(arrival, 0)


def _traceparent(arrival: Arrival, flags: int) -> str:
    return str(TRACECONTEXT.encode(Snapshot(arrival.trace_id, arrival.span_id, flags=flags))[0])


def _flags(trace_id: int) -> int:
    """Whether a trace that begins here is recorded: what the sampler says of its root; without an SDK, yes."""
    sampler = getattr(trace.get_tracer_provider(), "sampler", None)
    if sampler is None:
        return 1
    return int(sampler.should_sample(None, trace_id, "HTTP", SpanKind.SERVER).decision.is_sampled())
