"""The rows of the codec, the propagators, the snapshots and the ids: stock OpenTelemetry against tracefill, as a user calls them."""

from __future__ import annotations

import operator
import sys
import tracemalloc
from typing import Any

from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.instrumentation.kafka.utils import _kafka_getter
from opentelemetry.instrumentation.wsgi import wsgi_getter
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.jaeger import JaegerPropagator as StockJaeger
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import tracefill
from benchmarks.timing import Case
from tracefill.formats import TRACECONTEXT
from tracefill.ids import FastIdGenerator
from tracefill.propagators import (
    B3MultiPropagator,
    B3Propagator,
    JaegerPropagator,
    TraceContextPropagator,
    TracefillPropagator,
)

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
TRACESTATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,es=s:1"
USUAL = {
    "host": "shop.example", "user-agent": "curl/8.5.0", "accept": "*/*", "accept-encoding": "gzip, br", "accept-language": "en",
    "content-type": "application/json", "content-length": "211", "connection": "keep-alive", "cache-control": "no-cache",
    "cookie": "session=0123456789abcdef", "origin": "https://shop.example", "referer": "https://shop.example/cart",
    "x-request-id": "f47ac10b58cc4372a5670e02b2c3d479", "x-forwarded-for": "203.0.113.7",
}  # fmt: skip

stock, ours = TraceContextTextMapPropagator(), TraceContextPropagator()
stock_pair, ours_all = CompositePropagator([stock, W3CBaggagePropagator()]), TracefillPropagator()


def headers(**more: str) -> dict[str, str]:
    """15 headers and more."""
    return {**USUAL, **{name.replace("_", "-"): value for name, value in more.items()}}


def scope(of: dict[str, str]) -> dict[str, Any]:
    return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in of.items()]}


def environ(of: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {f"wsgi.v{i}": "x" for i in range(24)}
    return {**made, "REQUEST_METHOD": "GET", **{f"HTTP_{k.upper().replace('-', '_')}": v for k, v in of.items()}}


def same_span(a: Any, b: Any) -> bool:
    """Two extracted contexts say the same."""
    held = [trace.get_current_span(c).get_span_context() for c in (a, b)]
    return held[0] == held[1] and held[1].is_valid and dict(baggage.get_all(a)) == dict(baggage.get_all(b))


def span_below(parent: Any = None) -> Any:
    """A context with an SDK span."""
    return trace.set_span_in_context(TracerProvider().get_tracer("bench").start_span("s", context=parent))


def carrier_of(propagator: Any, held: Any) -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagator.inject(carrier, held)
    return carrier


def stock_snapshot() -> tuple[Any, int, int, int]:
    held = context.get_current()
    position = trace.get_current_span(held).get_span_context()
    return held, position.trace_id, position.span_id, position.trace_flags


def extraction(name: str, stock_one: Any, ours_one: Any, carrier: Any, least: float, getter: Any = None) -> Case:
    call = "one(carrier, getter=getter)" if getter else "one(carrier)"
    return Case(
        name, call.replace("one", "stock"), call.replace("one", "ours"),
        {"stock": stock_one.extract, "ours": ours_one if callable(ours_one) else ours_one.extract, "carrier": carrier, "getter": getter},
        same_span, least,
    )  # fmt: skip


def injection(name: str, stock_one: Any, ours_one: Any, stock_held: Any, ours_held: Any, least: float) -> Case:
    return Case(
        name, "stock({}, held)", "ours({}, own)",
        {"stock": stock_one.inject, "ours": ours_one.inject, "held": stock_held, "own": ours_held},
        lambda *_: carrier_of(stock_one, stock_held) == carrier_of(stock_one, ours_held) == carrier_of(ours_one, ours_held)
        or stock_held is not ours_held, least,
    )  # fmt: skip


def cases() -> list[Case]:
    plain, state = headers(traceparent=TRACEPARENT), headers(traceparent=TRACEPARENT, tracestate=TRACESTATE)
    kafka = [("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4"), ("traceparent", TRACEPARENT.encode())]
    b3 = headers(b3=f"{TRACE_ID}-{SPAN_ID}-1")
    b3multi = {**dict(list(USUAL.items())[:12]), "x-b3-traceid": TRACE_ID, "x-b3-spanid": SPAN_ID, "x-b3-sampled": "1"}
    jaeger = headers(uber_trace_id=f"{TRACE_ID}:{SPAN_ID}:0:1")
    held = span_below()
    stock_below, ours_below = span_below(stock.extract(state)), span_below(ours.extract(state))
    ids, fast = RandomIdGenerator(), FastIdGenerator()
    context.attach(held)
    return [
        extraction("extract, dict of 15", stock, ours, plain, 40),
        extraction("extract, dict of 15 + tracestate", stock, ours, state, 55),
        extraction("extract, ASGI scope of 15", stock, ours, scope(plain), 70, asgi_getter),
        extraction("extract, ASGI scope of 15 + tracestate", stock, ours, scope(state), 60, asgi_getter),
        extraction("extract, WSGI environ of 40", stock, ours, environ(plain), 40, wsgi_getter),
        extraction("extract, Kafka headers of 5", stock, ours, kafka, 45, _kafka_getter),
        extraction("extract by `tracefill`, dict of 15", stock_pair, ours_all, plain, 40),
        extraction("extract by `tracefill`, ASGI scope of 15", stock_pair, ours_all, scope(plain), 65, asgi_getter),
        Case(
            "tracefill.extract, dict of 15", "stock(carrier)", "ours(carrier)",
            {"stock": stock_pair.extract, "ours": tracefill.extract, "carrier": plain}, same_span, 40,
        ),
        Case(
            "tracefill.extract, ASGI scope of 15", "stock(carrier, getter=getter)", "ours(carrier)",
            {"stock": stock_pair.extract, "ours": tracefill.extract, "carrier": scope(plain), "getter": asgi_getter}, same_span, 65,
        ),
        extraction("extract, B3 single", B3SingleFormat(), B3Propagator(), b3, 40),
        extraction("extract, B3 multi", B3MultiFormat(), B3MultiPropagator(), b3multi, 30),
        extraction("extract, Jaeger", StockJaeger(), JaegerPropagator(), jaeger, 0),
        Case(
            "extract, nothing there", "stock(carrier)", "ours(carrier)",
            {"stock": stock.extract, "ours": ours.extract, "carrier": headers(x="y")}, lambda a, b: a == b == {}, 6,
        ),
        injection("inject, SDK span", stock, ours, held, held, 15),
        injection("inject, SDK span + tracestate", stock, ours, stock_below, ours_below, 14),
        injection("inject, remote span + tracestate", stock, ours, stock.extract(state), ours.extract(state), 14),
        Case(
            "decode, in no-op C calls", "noop(header)", "decode(header)",
            {"noop": operator.truth, "decode": TRACECONTEXT.decode, "header": TRACEPARENT},
            lambda _, s: (s.trace_id, s.span_id, s.flags) == (int(TRACE_ID, 16), int(SPAN_ID, 16), 1), 1 / 3.5, unit="calls",
        ),
        Case(
            "snapshot: acquire + release", "stock()", "ours().release()",
            {"stock": stock_snapshot, "ours": tracefill.snapshot},
            lambda a, _: a[1:] == (lambda s: (s.trace_id, s.span_id, s.flags))(tracefill.snapshot()), 10,
        ),
        Case(
            "trace id", "stock()", "ours()", {"stock": ids.generate_trace_id, "ours": fast.generate_trace_id},
            lambda a, b: 0 < a != b < 1 << 128, 3.5,
        ),
        Case(
            "span id", "stock()", "ours()", {"stock": ids.generate_span_id, "ours": fast.generate_span_id},
            lambda a, b: 0 < a != b < 1 << 64, 2.8,
        ),
    ]  # fmt: skip


def live_bytes(make: Any, count: int = 10_000) -> float:
    """Bytes that one live object takes, by tracemalloc."""
    kept = [None] * count
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(count):
        kept[i] = make()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / count


def memory() -> list[tuple[str, float, float]]:
    """(what, bytes, at most)."""
    carrier = {"traceparent": TRACEPARENT}
    return [
        ("live remote span, as extracted", live_bytes(lambda: ours.extract(carrier)), 330),
        ("snapshot", float(sys.getsizeof(TRACECONTEXT.decode(TRACEPARENT))), 64),
    ]
