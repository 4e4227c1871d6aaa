"""Snapshot <-> OpenTelemetry Context: extract, inject, scope, current; and the runtime context.

context = extract(request.headers)
with scope(context):        # current inside, and afterwards what was current before, whatever happened in between
    handle(request)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from tracefill._codec import RuntimeContext, Scope, current_context, extract, inject, scope

__all__ = ["RuntimeContext", "Scope", "current", "environment", "extract", "from_environment", "inject", "scope"]

current = current_context


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of `base` (default: `os.environ`) with TRACEPARENT, TRACESTATE and BAGGAGE of now, for a program to be started.

    >>> import tracefill
    >>> with scope(tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})):
    ...     environment({})
    {'TRACEPARENT': '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'}
    """
    variables: MutableMapping[str, str] = dict(os.environ if base is None else base)
    for name in ("TRACEPARENT", "TRACESTATE", "BAGGAGE"):
        variables.pop(name, None)
    headers: dict[str, str] = {}
    inject(headers)
    variables.update({name.upper().replace("-", "_"): value for name, value in headers.items()})
    return dict(variables)


def from_environment(variables: Mapping[str, str] | None = None) -> dict[str, object]:
    """The Context that whoever started this program left in its environment; an empty one when he left none.

    >>> len(from_environment({}))
    0
    """
    source = os.environ if variables is None else variables
    return extract({name.lower().replace("_", "-"): value for name, value in source.items()})
