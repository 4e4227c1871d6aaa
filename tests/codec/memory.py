"""python -m tests.codec.memory [--count 10000000]: snapshots acquired and released, headers extracted and injected, so many
times; prints the resident memory on the way, and exits 1 when it grew by more than a megabyte after the first tenth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import psutil
from opentelemetry import context

import tracefill
from tracefill.propagators import TracefillPropagator

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BLOCK = 10_000
ALLOWED_BYTES = 1 << 20


def snapshots() -> None:
    for _ in range(BLOCK):
        tracefill.snapshot().release()


def headers() -> None:
    propagator = TracefillPropagator()
    carrier = {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2", "baggage": "k=v"}
    for _ in range(BLOCK):
        propagator.inject({}, propagator.extract(carrier))


def bad_headers() -> None:
    for i in range(BLOCK):
        tracefill.extract([("traceparent", TRACEPARENT.upper()), ("b3", f"{i}-x"), ("baggage", f"={i},%zz={i}")])


TURNS: dict[str, Callable[[], None]] = {
    "acquire + release": snapshots,
    "extract + inject": headers,
    "bad headers": bad_headers,
}


def grown(turn: Callable[[], None], count: int) -> int:
    """Bytes of resident memory gained after the first tenth of so many turns."""
    process = psutil.Process()
    blocks = max(10, count // BLOCK)
    for _ in range(blocks // 10):
        turn()
    before = process.memory_info().rss
    for _ in range(blocks - blocks // 10):
        turn()
    return process.memory_info().rss - before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.codec.memory", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000_000)
    count = parser.parse_args().count
    context.attach(tracefill.extract({"traceparent": TRACEPARENT}))
    failed = 0
    for name, turn in TURNS.items():
        more = grown(turn, count)
        failed += more > ALLOWED_BYTES
        print(f"{name}: {count} times, resident memory {more:+d} bytes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
