"""The OpenTelemetry plug-ins: `OTEL_PROPAGATORS=tracefill`, or any of the single formats by `tracefill_<format>`.

Declarative configuration builds them from keyword arguments:

    propagator:
      composite:
        - tracefill: {extract: [tracecontext, b3], inject: [tracecontext, b3], defer: deny}

Each entry point has a class of its own, because OpenTelemetry drops the second of two propagators of one class.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar
from urllib.parse import unquote

from opentelemetry import baggage as _baggage
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import get_current_span

from tracefill import _codec
from tracefill._codec import Propagator

__all__ = [
    "B3MultiPropagator",
    "B3Propagator",
    "BaggagePropagator",
    "DatadogPropagator",
    "JaegerPropagator",
    "OTTracePropagator",
    "TraceContextPropagator",
    "TracefillPropagator",
    "XRayPropagator",
]


class TracefillPropagator(Propagator, TextMapPropagator):
    """Reads the first valid of all text formats, and baggage; writes tracecontext and baggage.

    `extract`, `inject`: names of formats, in order. `baggage`: read and write it. `defer`: what a B3 header that leaves the
    sampling decision open is taken for, "accept" or "deny" (OpenTelemetry's SpanContext has no third state).
    """

    def __init__(
        self,
        extract: Sequence[str] = ("tracecontext", "b3", "b3multi", "jaeger", "xray", "datadog", "ottrace"),
        inject: Sequence[str] = ("tracecontext",),
        baggage: bool = True,
        defer: str = "accept",
    ) -> None:
        super().__init__(extract, inject, baggage, defer)


class TraceContextPropagator(Propagator, TextMapPropagator):
    """W3C Trace Context, level 2 (https://www.w3.org/TR/trace-context-2/)."""

    def __init__(self) -> None:
        super().__init__(("tracecontext",), ("tracecontext",))


class BaggagePropagator(Propagator, TextMapPropagator):
    """W3C Baggage (https://www.w3.org/TR/baggage/)."""

    def __init__(self) -> None:
        super().__init__(baggage=True)


class B3Propagator(Propagator, TextMapPropagator):
    """B3: reads the single header and then the multiple ones, writes the single one."""

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("b3", "b3multi"), ("b3",), defer=defer)


class B3MultiPropagator(Propagator, TextMapPropagator):
    """B3: reads the single header and then the multiple ones, writes the multiple ones."""

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("b3", "b3multi"), ("b3multi",), defer=defer)


class XRayPropagator(Propagator, TextMapPropagator):
    """AWS X-Ray's `X-Amzn-Trace-Id`."""

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("xray",), ("xray",), defer=defer)


class DatadogPropagator(Propagator, TextMapPropagator):
    """Datadog's `x-datadog-*` headers, 128-bit trace ids included."""

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("datadog",), ("datadog",), defer=defer)


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e]+")  # RFC 9110, section 5.5, ASCII only
_MEMBERS, _MEMBER_BYTES, _TOTAL_BYTES = 180, 4096, 8192  # the bounds of W3C Baggage; these formats name none


class _PrefixBaggage(Propagator, TextMapPropagator):
    """The two formats of old whose baggage is a header a member."""

    _prefix: ClassVar[str]
    _header: ClassVar[str]

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        found = super().extract(carrier, context, getter)
        initials = (self._prefix[0], self._prefix[0].upper())  # of the header too: few others begin so
        names = [n for n in getter.keys(carrier) or () if isinstance(n, str) and n.startswith(initials)]
        if not any(name.lower() == self._header for name in names):
            return found
        names = [name for name in names if name.lower().startswith(self._prefix)]
        if not names:
            return found
        room = _MEMBERS - len(_baggage.get_all(found))
        lines = ((name[len(self._prefix) :], getter.get(carrier, name)) for name in names[:room])
        members = ((name, values[0]) for name, values in lines if values and isinstance(values[0], str))
        for name, value in _bounded(members):
            found = _baggage.set_baggage(name, self._decoded(value), found)
        return found

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        context = get_current() if context is None else context
        super().inject(carrier, context, setter)
        members = itertools.islice(_baggage.get_all(context).items(), _MEMBERS)
        for name, value in _bounded((name, self._coded(str(value))) for name, value in members):
            # Anything else could end the header and begin another one.
            if _TOKEN.fullmatch(name) and _FIELD_VALUE.fullmatch(value):
                setter.set(carrier, self._prefix + name, value)

    @staticmethod
    def _coded(value: str) -> str:
        return value

    @staticmethod
    def _decoded(value: str) -> str:
        return value


def _bounded(members: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Those members that fit, each alone and all together, with the `=` and `,` that they would have in W3C Baggage."""
    total = -1
    for name, value in members:
        size = len(name.encode()) + 1 + len(value.encode())
        if size <= _MEMBER_BYTES and total + 1 + size <= _TOTAL_BYTES:
            total += 1 + size
            yield name, value


class _WithParent(Setter[CarrierT]):
    """Puts the parent's id into `uber-trace-id`: deprecated, ignored by readers, and still sent by Jaeger's own clients."""

    def __init__(self, setter: Setter[CarrierT], parent_id: int) -> None:
        self._setter = setter
        self._parent = f":{parent_id:016x}:"

    def set(self, carrier: CarrierT, key: str, value: str) -> None:
        self._setter.set(carrier, key, value.replace(":0:", self._parent) if key == "uber-trace-id" else value)


class JaegerPropagator(_PrefixBaggage):
    """Jaeger's `uber-trace-id`, and its baggage headers `uberctx-*`."""

    _prefix = "uberctx-"
    _header = "uber-trace-id"

    def __init__(self) -> None:
        super().__init__(("jaeger",), ("jaeger",))

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        parent = getattr(get_current_span(context), "parent", None)
        super().inject(carrier, context, _WithParent(setter, parent.span_id) if parent else setter)

    @staticmethod
    def _coded(value: str) -> str:
        return _codec.percent_encode(value)

    @staticmethod
    def _decoded(value: str) -> str:
        return unquote(value).strip()


class OTTracePropagator(_PrefixBaggage):
    """OpenTracing's `ot-tracer-*`, and its baggage headers `ot-baggage-*`."""

    _prefix = "ot-baggage-"
    _header = "ot-tracer-traceid"

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("ottrace",), ("ottrace",), defer=defer)


_codec.set_default_propagator(TracefillPropagator())
