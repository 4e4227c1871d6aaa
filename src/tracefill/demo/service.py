"""python -m tracefill.demo.service NAME MODE FILE: one process of the shop, with the telemetry of a run.

MODE is "stock" (the SDK and contrib's instrumentations) or "tracefill" (the SDK and `tracefill.install(queues=True)`). Serves
until its standard input ends, which it also does when the demo dies.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

STOP_SECONDS = 15


def telemetry(service: str, path: str) -> TracerProvider:
    """The SDK of a process: its spans go to a file of OTLP JSON lines."""
    resource = Resource({"service.name": service, "service.instance.id": str(os.getpid())})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(path), schedule_delay_millis=500))
    trace.set_tracer_provider(provider)
    return provider


def contrib() -> None:
    """What `opentelemetry-instrument` would switch on for this shop."""
    from opentelemetry.instrumentation.kafka import KafkaInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    for instrumentor in (
        KafkaInstrumentor, RequestsInstrumentor, SQLite3Instrumentor, StarletteInstrumentor, ThreadingInstrumentor
    ):  # fmt: skip
        instrumentor().instrument()


def ours() -> None:
    import tracefill

    tracefill.install(queues=True)


MODES: dict[str, Callable[[], None]] = {"stock": contrib, "tracefill": ours}


def main(name: str, mode: str, path: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the demo sees Ctrl-C, and ends us in order
    provider = telemetry(name, path)
    MODES[mode]()
    from tracefill.demo.shop import SERVICES

    stop = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(stop,), daemon=True).start()
    SERVICES[name](stop)
    provider.shutdown()
    sys.stdout.flush()
    os._exit(0)  # whatever thread still waits for a broker has nothing to say any more


def _wait_for_the_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)  # something waits for a broker or a caller that has gone


if __name__ == "__main__":
    main(*sys.argv[1:])
