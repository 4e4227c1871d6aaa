"""How long the audit takes for millions of spans: the columns are made here, so that no reader is in the figure.

python benchmarks/audit.py [millions]
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import numpy.typing as npt

from tracefill.audit.chains import audit
from tracefill.audit.spans import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER, Spans, SpansBuilder

SERVICES = 20
HOPS = 3  # services a request goes through
BEGIN = 1_767_225_600_000_000_000
WINDOW = 3_600_000_000_000
SHAPE = (  # of the spans of one service, in one request: kind, place of the parent, start and length in microseconds
    (SERVER, None, 0, 9_000),
    (INTERNAL, 0, 100, 8_000),
    (CLIENT, 1, 200, 1_000),  # a statement
    (PRODUCER, 1, 1_300, 500),
    (CONSUMER, 3, 2_500, 400),
    (CLIENT, 1, 3_000, 4_000),  # calls the next service
)
LOST_EDGE, LOST_HAND_OFF, LOST_SPAN = 0.02, 0.01, 0.005

Column = npt.NDArray[np.int64]


def make(count: int) -> Spans:
    """A table of about so many spans, with calls and hand-offs lost and spans missing, in no order."""
    random = np.random.default_rng(7)
    requests = count // (HOPS * len(SHAPE))
    trace = random.integers(1, 1 << 62, (requests, 2))
    start = BEGIN + random.integers(0, WINDOW - 1_000_000_000, requests)
    entry = random.integers(0, SERVICES, requests)
    builder, above = SpansBuilder(), np.zeros(requests, np.int64)
    for hop in range(HOPS):
        lost = (random.random(requests) < LOST_EDGE) & (hop > 0)
        trace[lost] = random.integers(1, 1 << 62, (int(lost.sum()), 2))
        above[lost] = 0
        above = _one_service(builder, random, trace, start + hop * 3_100_000, (entry + hop) % SERVICES, above)
    return _shuffled(builder.build(), random)


def _one_service(
    builder: SpansBuilder, random: np.random.Generator, trace: Column, start: Column, service: Column, above: Column
) -> Column:
    ids = [random.integers(1, 1 << 62, len(start)) for _ in SHAPE]
    services = np.array([builder.intern(f"service-{number}") for number in range(SERVICES + 1)])
    for place, (kind, parent, after, length) in enumerate(SHAPE):
        lost = (random.random(len(start)) < LOST_HAND_OFF) & (kind == INTERNAL)
        own = services[(service + 1) % SERVICES if kind == CONSUMER else service]
        begin = start + after * 1_000
        builder.extend(
            {
                "trace_id_high": trace[:, 0] + lost,
                "trace_id_low": trace[:, 1],
                "span_id": ids[place],
                "parent_id": np.where(lost, 0, above if parent is None else ids[parent]),
                "start": begin,
                "end": begin + length * 1_000,
                "kind": np.full(len(start), kind),
                "database": np.full(len(start), place == 2),
                "name": np.full(len(start), builder.intern(f"step {place}")),
                "service": own,
                "process": own,
                "library": np.full(len(start), builder.intern(f"library-{kind}")),
                "destination": np.full(len(start), builder.intern("topic" if kind in (PRODUCER, CONSUMER) else "")),
                "peer": services[(service + 1) % SERVICES] if place == 5 else np.zeros(len(start)),
            }
        )
    return ids[-1]


def _shuffled(spans: Spans, random: np.random.Generator) -> Spans:
    order = np.flatnonzero(random.random(len(spans)) >= LOST_SPAN)
    random.shuffle(order)
    for name, column in spans.columns.items():
        if not name.startswith("link_"):
            spans.columns[name] = column[order]
    return spans


def main(millions: float = 2.0) -> None:
    spans = make(round(millions * 1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, cpu = time.perf_counter(), time.process_time()
    document = audit(spans)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    chains = document["chains"]
    counts = ", ".join(f"{f['cause']} {f['count']}" for f in document["findings"][:5])
    print(
        f"{document['input']['spans']} spans: {wall:.2f} s, {cpu:.2f} CPU s, at most {peak:.0f} MB ({before:.0f} before)"
    )
    print(f"{chains['whole']} of {chains['total']} chains whole; {len(document['findings'])} findings: {counts}, ...")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
