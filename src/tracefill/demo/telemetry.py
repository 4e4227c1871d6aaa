"""The telemetry of a process of the shop, as its run wants it: the stock SDK with contrib's instrumentations, or with tracefill.

The run says so in two variables: SHOP_MODE is "stock" or "tracefill", SHOP_SPANS the folder for the exported spans.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import wait

from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

EXPORT_EVERY_MS = 200


def begin(service: str, file: str | None = None) -> TracerProvider:
    """The SDK, whose spans go to a file of OTLP JSON lines, and what the mode of the run adds to it."""
    instance = os.environ.setdefault("SHOP_INSTANCE", str(os.getpid()))  # one, with the workers of its pools
    resource = Resource({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(resource=resource)
    path = os.path.join(os.environ["SHOP_SPANS"], f"{file or service}.jsonl")
    provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(path), schedule_delay_millis=EXPORT_EVERY_MS))
    trace.set_tracer_provider(provider)
    MODES[os.environ["SHOP_MODE"]]()
    return provider


def begin_in_worker(service: str) -> None:
    """The same in a process of a service's pool, which does not outlive the service either."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin(service, f"{service}-worker-{os.getpid()}")
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def contrib() -> None:
    """What `opentelemetry-instrument` would switch on for this shop."""
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
    from opentelemetry.instrumentation.kafka import KafkaInstrumentor
    from opentelemetry.instrumentation.pika import PikaInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    for instrumentor in (
        GrpcInstrumentorClient, GrpcInstrumentorServer, KafkaInstrumentor, PikaInstrumentor, RequestsInstrumentor,
        SQLite3Instrumentor, StarletteInstrumentor, ThreadingInstrumentor,
    ):  # fmt: skip
        instrumentor().instrument()


def ours() -> None:
    import tracefill
    from tracefill import tags
    from tracefill.tags import Tag

    tags.declare(
        Tag("tenant_id", header="x-tenant-id", baggage=True),
        Tag("order_no", path=("/orders/{order_no}", "/guest-orders/{order_no}"), baggage=True),
    )
    tracefill.install(queues=True)


MODES: dict[str, Callable[[], None]] = {"stock": contrib, "tracefill": ours}
