"""Other libraries' propagators over the same headers: context for the table, not like for like (each returns its own objects)."""

from __future__ import annotations

import os

# ddtrace reads its configuration on import, and would start its own machinery.
os.environ.setdefault("DD_TRACE_ENABLED", "false")
os.environ.setdefault("DD_TRACE_PROPAGATION_STYLE", "tracecontext")
os.environ.setdefault("DD_REMOTE_CONFIGURATION_ENABLED", "false")
os.environ.setdefault("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "false")

from ddtrace.propagation.http import HTTPPropagator

from benchmarks import codec
from benchmarks.timing import Case


def cases() -> list[Case]:
    plain = codec.headers(traceparent=codec.TRACEPARENT)
    state = codec.headers(traceparent=codec.TRACEPARENT, tracestate=codec.TRACESTATE)
    return [
        Case(
            f"ddtrace (tracecontext), {name}", "stock(carrier)", "ours(carrier)",
            {"stock": HTTPPropagator.extract, "ours": codec.ours.extract, "carrier": carrier},
            lambda theirs, _: f"{theirs.trace_id:032x}" == codec.TRACE_ID, 0,
        )
        for name, carrier in (("dict of 15", plain), ("dict of 15 + tracestate", state))
    ]  # fmt: skip
