"""What a type checker tells a user: checked by `make typecheck`, never run."""

from __future__ import annotations

import threading

from opentelemetry.context import Context
from typing_extensions import assert_type

import tracefill
from tracefill import Snapshot, SnapshotPool
from tracefill.formats import B3, FORMATS, decode_baggage
from tracefill.propagators import TracefillPropagator


def price(order: str, *, rebate: int = 0) -> float:
    return len(order) - rebate / 100


assert_type(tracefill.extract({"traceparent": ""}), Context)
assert_type(tracefill.snapshot(), Snapshot)
assert_type(tracefill.snapshot().trace_id, int)
assert_type(tracefill.snapshot().parent_id, int | None)
assert_type(tracefill.snapshot().run(price, "7", rebate=1), float)
assert_type(Snapshot.from_json("{}"), Snapshot | None)
assert_type(SnapshotPool(8).stats().in_use, int)
assert_type(SnapshotPool(8).stats()["in_use"], int)
assert_type(tracefill.bind(price)("7"), float)
assert_type(tracefill.go(price, "7"), threading.Thread)
assert_type(B3.decode("0"), Snapshot | None)
assert_type(FORMATS["b3"].encode(Snapshot(1, 2)), tuple[str | bytes | None, ...])
assert_type(decode_baggage("a=1"), dict[str, str])
assert_type(tracefill.installed(), list[str])
with tracefill.context.scope(Context()) as inside:
    assert_type(inside, Context)
with tracefill.snapshot() as here:
    assert_type(here, Snapshot)

tracefill.bind(price)(7)  # type: ignore[arg-type]
tracefill.snapshot().run(price, rebait=1)  # type: ignore[call-arg]
Snapshot(decision="maybe")  # type: ignore[arg-type]
TracefillPropagator(extracts=["b3"])  # type: ignore[call-arg]
