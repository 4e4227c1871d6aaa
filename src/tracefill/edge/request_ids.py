"""X-Request-ID: what is taken for one, which one is in force now, and how many were not as they should be.

>>> readable(b"6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e"), readable("<script>")
('6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e', None)
>>> hex(as_trace_id("6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e"))
'0x6f5902ac237e4f0e8a1c2f1d6c0b9d3e'
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from tracefill import _codec
from tracefill.context import current as current_context

__all__ = ["HEADER", "KEY", "as_trace_id", "count", "counts", "current", "in_context", "readable", "report"]

HEADER = "X-Request-ID"
#: Where it rides in an OpenTelemetry Context, so that it goes wherever the trace goes.
KEY: str = _codec.REQUEST_ID_KEY

# What is passed on has to be safe in every header, log line and page that it may be written to, and short.
_READABLE = re.compile(r"[A-Za-z0-9._~:+=/@-]{1,128}")
_TRACE_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def readable(value: str | bytes | None) -> str | None:
    """The request id that a header line holds; None when it is absent, or nothing that may be passed on."""
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text if _READABLE.fullmatch(text) else None


def as_trace_id(text: str) -> int:
    """The trace id that a request id is (32 hex digits, or a UUID with dashes); 0 when it is another kind of name."""
    return int(text.replace("-", ""), 16) if _TRACE_ID.fullmatch(text) else 0


def current(context: Context | None = None) -> str | None:
    """The request id in force in a context (default: of now).

    >>> current() is None
    True
    """
    found = (current_context() if context is None else context).get(KEY)
    return found if isinstance(found, str) else None


def in_context(context: Mapping[str, object], request_id: str) -> Context:
    """The context with this request id in force."""
    changed = dict(context)
    changed[KEY] = request_id
    return Context(changed)


_counts = {"bad": 0, "disagreeing": 0, "missing": 0}
_lock = threading.Lock()


def count(state: str) -> None:
    """One more request whose id was "missing", "bad", or "disagreeing" with its trace context."""
    with _lock:
        _counts[state] += 1


def counts() -> dict[str, int]:
    """How many requests of each state this process has seen."""
    with _lock:
        return dict(_counts)


def report() -> Any:
    """The counts as the OpenTelemetry metric `tracefill.gateway.request_ids`, by `tracefill.request_id.state`."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(number, {"tracefill.request_id.state": state}) for state, number in counts().items()]

    return metrics.get_meter("tracefill.gateway").create_observable_counter(
        "tracefill.gateway.request_ids",
        callbacks=[observe],
        unit="{request}",
        description="Requests whose X-Request-ID was missing, bad, or named another trace than their trace context.",
    )
