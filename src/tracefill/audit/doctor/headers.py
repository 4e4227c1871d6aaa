"""The propagator: which formats it reads and writes, and what the core has met that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tracefill
from tracefill import _codec
from tracefill.audit.doctor.finding import Finding

TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
OURS = "OTEL_PROPAGATORS=tracefill"


def described() -> dict[str, Any]:
    """The parts of the global propagator, the formats it reads and those it writes. What it raises goes through."""
    from opentelemetry.propagate import get_global_textmap

    propagator = get_global_textmap()
    parts = getattr(propagator, "_propagators", [propagator])
    return {
        "parts": [f"{type(part).__module__}.{type(part).__qualname__}" for part in parts],
        "reads": [name for name in _text_formats() if _reads(propagator, name)],
        "writes": _written(propagator),
    }


def headers_of(name: str, trace_id: int = TRACE_ID) -> dict[str, str]:
    """The headers of a recorded span, in this format."""
    format = tracefill.formats.FORMATS[name]
    values = format.encode(tracefill.Snapshot(trace_id, SPAN_ID, flags=1, decision="accept"))
    return {field: str(value) for field, value in zip(format.fields, values, strict=True) if value is not None}


def _text_formats() -> list[str]:
    return [name for name in tracefill.formats.FORMATS if name != "grpc_bin"]


def _reads(propagator: Any, name: str) -> bool:
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span

    found = get_current_span(propagator.extract(headers_of(name), Context())).get_span_context()
    return bool(found.span_id == SPAN_ID)


def _written(propagator: Any) -> list[str]:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    span = NonRecordingSpan(SpanContext(TRACE_ID, SPAN_ID, False, TraceFlags(TraceFlags.SAMPLED)))
    headers: dict[str, str] = {}
    propagator.inject(headers, set_span_in_context(span, Context()))
    names = {name.lower() for name in headers}
    formats = tracefill.formats.FORMATS
    return [name for name in _text_formats() if formats[name].fields[0] in names]


def findings(propagator: Mapping[str, Any]) -> Iterator[Finding]:
    """What the propagator cannot do, by `described()`."""
    reads, writes = propagator["reads"], propagator["writes"]
    if not reads and not writes:
        yield Finding(
            "propagator_missing",
            "the global propagator reads and writes no trace header: every service begins traces of its own",
            "tracefill's reads all formats",
            OURS,
        )
    elif set(writes) - set(reads) or not writes:
        yield Finding(
            "propagator_one_way",
            f"the global propagator reads {_listed(reads)} and writes {_listed(writes)}: "
            "a service that is set up alike cannot continue it",
            "tracefill's reads all formats and writes the standard one",
            OURS,
            {"reads": reads, "writes": writes},
        )
    elif "tracecontext" not in reads:
        yield Finding(
            "tracecontext_not_read",
            f"traceparent, the standard header, is not read; {_listed(reads)} is",
            "tracefill's reads all formats",
            OURS,
            note=True,
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def arrived(counters: Mapping[str, Any], reads: list[str]) -> Iterator[Finding]:
    """What has arrived in this process and was of no use."""
    for name, count in counters["unread"].items():
        if name not in reads:
            header = _codec.FORMAT_FIELDS[name][0]
            yield Finding(
                "format_not_read",
                f"{count} requests or messages brought {header} ({name}) and nothing that is read",
                "tracefill's propagator reads all formats",
                OURS,
                {"format": name, "count": count},
            )
    for (name, reason), count in counters["malformed"].items():
        valid = counters["extracted"].get(name, 0)
        yield Finding(
            "headers_malformed",
            f"{count} {_codec.FORMAT_FIELDS[name][0]} headers could not be read: {reason}; {valid} could",
            "mend whoever sends them; `tracefill.formats` explains a value",
            f"tracefill.formats.{name.upper()}.explain(value)",
            {"format": name, "reason": reason, "count": count, "valid": valid},
            note=count <= valid,
        )
