"""Wire names: one row a format, and baggage.

| name         | headers                                   | specification |
|--------------|-------------------------------------------|---------------|
| tracecontext | traceparent, tracestate                   | https://www.w3.org/TR/trace-context-2/ |
| b3           | b3                                        | https://github.com/openzipkin/b3-propagation#single-header |
| b3multi      | x-b3-traceid, x-b3-spanid, ...            | https://github.com/openzipkin/b3-propagation#multiple-headers |
| jaeger       | uber-trace-id                             | https://www.jaegertracing.io/sdk-migration/#propagation-format |
| xray         | x-amzn-trace-id                           | https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader |
| datadog      | x-datadog-trace-id, ...                   | https://docs.datadoghq.com/tracing/trace_collection/trace_context_propagation/ |
| ottrace      | ot-tracer-traceid, ...                    | OpenTracing's basictracer |
| grpc_bin     | grpc-trace-bin                            | https://github.com/census-instrumentation/opencensus-specs/blob/master/encodings/BinaryEncoding.md |

>>> from tracefill.formats import B3
>>> B3.decode("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-d").decision
'debug'
>>> B3.decode("80f198ee56343ba864fe8b2a57d3eff7-E457B5A2E4D86BD1-d") is None
True
>>> B3.explain("80f198ee56343ba864fe8b2a57d3eff7-E457B5A2E4D86BD1-d")
'the span id is not lower-case hex'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tracefill import _codec
from tracefill._codec import Snapshot

__all__ = [
    "B3",
    "B3MULTI",
    "DATADOG",
    "FORMATS",
    "GRPC_BIN",
    "JAEGER",
    "OTTRACE",
    "TRACECONTEXT",
    "XRAY",
    "Format",
    "decode_baggage",
    "encode_baggage",
]

Value = str | bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """One way to write a trace position in headers.

    `decode(*values)` takes the values of `fields` (str or bytes, None for absent) and gives a Snapshot, or None: nothing that
    a stranger sent makes it raise. `encode(snapshot)` gives the values to send, parallel to `fields`, None for those that are
    not sent. `explain(*values)` says why decode gives None, and None when it does not.
    """

    name: str
    fields: tuple[str, ...] = field(init=False)
    decode: Callable[..., Snapshot | None] = field(init=False, repr=False)
    encode: Callable[[Snapshot], tuple[str | bytes | None, ...]] = field(init=False, repr=False)
    explain: Callable[..., str | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        core = _codec._Codec(self.name)
        for name, value in (
            ("fields", _codec.FORMAT_FIELDS[self.name]),
            ("decode", _DIRECT.get(self.name, core.decode)),
            ("encode", core.encode),
            ("explain", core.explain),
        ):
            object.__setattr__(self, name, value)


# The two formats of the hot path have a function of their own, without the tuple of arguments.
_DIRECT = {"tracecontext": _codec.decode_tracecontext, "b3": _codec.decode_b3}

TRACECONTEXT = Format("tracecontext")
B3 = Format("b3")
B3MULTI = Format("b3multi")
JAEGER = Format("jaeger")
XRAY = Format("xray")
DATADOG = Format("datadog")
OTTRACE = Format("ottrace")
GRPC_BIN = Format("grpc_bin")

FORMATS: Mapping[str, Format] = {
    row.name: row for row in (TRACECONTEXT, B3, B3MULTI, JAEGER, XRAY, DATADOG, OTTRACE, GRPC_BIN)
}


def decode_baggage(*values: Value) -> dict[str, str]:
    """The members of all `baggage` header lines (https://www.w3.org/TR/baggage/), percent codes resolved.

    A member that is not valid is left out alone. A value that has properties reads `value;property` and is sent on as it came.

    >>> decode_baggage("tenant_id=a%20b,order_no=1+1", "env=prod;ttl=5")
    {'tenant_id': 'a b', 'order_no': '1+1', 'env': 'prod;ttl=5'}
    """
    return _codec.decode_baggage(*values)


def encode_baggage(members: Mapping[str, object]) -> str | None:
    """The `baggage` header value: at most 180 members and 8192 bytes, cut by whole members; None when nothing is left.

    >>> encode_baggage({"tenant_id": "a b", "order_no": "1+1"})
    'tenant_id=a%20b,order_no=1%2B1'
    """
    return _codec.encode_baggage(members)
