"""The OpenTelemetry plug-ins: `OTEL_PROPAGATORS=tracefill`, or any of the single formats by `tracefill_<format>`.

Declarative configuration builds them from keyword arguments:

    propagator:
      composite:
        - tracefill: {extract: [tracecontext, b3], inject: [tracecontext, b3], defer: deny}

Each entry point has a class of its own, because OpenTelemetry drops the second of two propagators of one class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar
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


class _PrefixBaggage(Propagator, TextMapPropagator):
    """The two formats of old whose baggage is a header a member."""

    _prefix: ClassVar[str]

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        found = super().extract(carrier, context, getter)
        for name in getter.keys(carrier) or ():
            if isinstance(name, str) and name.lower().startswith(self._prefix):
                values = getter.get(carrier, name)
                if values and isinstance(values[0], str):
                    found = _baggage.set_baggage(name[len(self._prefix) :], unquote(values[0]).strip(), found)
        return found

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        context = get_current() if context is None else context
        super().inject(carrier, context, setter)
        for name, value in _baggage.get_all(context).items():
            if _TOKEN.fullmatch(name):  # anything else could end the header and begin another one
                setter.set(carrier, self._prefix + name, _codec.percent_encode(str(value)))


class JaegerPropagator(_PrefixBaggage):
    """Jaeger's `uber-trace-id`, and its baggage headers `uberctx-*`."""

    _prefix = "uberctx-"

    def __init__(self) -> None:
        super().__init__(("jaeger",), ("jaeger",))


class OTTracePropagator(_PrefixBaggage):
    """OpenTracing's `ot-tracer-*`, and its baggage headers `ot-baggage-*`."""

    _prefix = "ot-baggage-"

    def __init__(self, defer: str = "accept") -> None:
        super().__init__(("ottrace",), ("ottrace",), defer=defer)


def _register() -> None:
    _codec.set_default_propagator(TracefillPropagator())


_register()


def __getattr__(name: str) -> Any:
    raise AttributeError(f"tracefill.propagators has no {name!r}; it has {', '.join(__all__)}")
