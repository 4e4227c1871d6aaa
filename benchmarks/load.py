"""Services under load: uvicorn with a Starlette application and gunicorn with a Flask application, driven by wrk.

python -m benchmarks.load [--seconds 5] [--unsampled] [--server uvicorn|gunicorn]

Each mode (no tracing, contrib, tracefill) has a server process of its own, which exports by OTLP over HTTP to a sink here.
Before it is measured the application tells which trace it is in: that must be the caller's. Spans of a service that ends
more of them than it can send are dropped by the SDK, in all modes alike; the last column counts the requests to the sink.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry import trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
NO_TRACE = "0" * 32
TRACEPARENTS = {
    "sampled": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
    "unsampled": f"00-{TRACE_ID}-00f067aa0ba902b7-00",
}
MODES = ("none", "contrib", "tracefill")
SERVERS = {
    "uvicorn": ("uvicorn", "--no-access-log", "--log-level=error", "--port={port}", "--factory", "benchmarks.load:starlette_app"),
    "gunicorn": ("gunicorn", "--threads=4", "--log-level=error", "--bind=127.0.0.1:{port}", "benchmarks.load:flask_app()"),
}  # fmt: skip
CONNECTIONS = 16
WARM_UP_SECONDS = 1
EXPORTED_WITHIN_S = 15  # the batch processor's delay is 5 s
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class Measured(NamedTuple):
    per_second: float
    p99_ms: float
    exports: int


class Sink(http.server.ThreadingHTTPServer):
    """A collector that takes everything and counts the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.count = 0
        super().__init__(("127.0.0.1", 0), SinkHandler)


class SinkHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sink

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.count += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5, help="of load for each row (default 5)")
    parser.add_argument(
        "--unsampled", action="store_true", help="only callers whose traceparent says no (default: both)"
    )
    parser.add_argument("--server", choices=SERVERS, help="only this one (default: both)")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: install the package wrk (Debian, Ubuntu: apt-get install wrk)")
    for server in [arguments.server] if arguments.server else SERVERS:
        for callers in ["unsampled"] if arguments.unsampled else TRACEPARENTS:
            compare(server, callers, arguments.seconds)


def compare(server: str, callers: str, seconds: int) -> None:
    plain = None
    for mode in MODES:
        found = measure(server, mode, callers, seconds)
        plain = plain or found
        print(
            f"{server:9} {callers:10} {mode:10} {found.per_second:8.0f} requests/s "
            f"({found.per_second / plain.per_second:4.2f} of none)   p99 {found.p99_ms:7.2f} ms   "
            f"{found.exports:4} exports",
            flush=True,
        )


def measure(server: str, mode: str, callers: str, seconds: int) -> Measured:
    with sink() as collector, serving(server, mode, collector.server_port) as url:
        check(url, mode, callers)
        load(url, callers, WARM_UP_SECONDS)
        per_second, p99_ms = load(url, callers, seconds)
        is_exporting = mode != "none" and callers == "sampled"
        if is_exporting:
            wait_for_export(collector)
    if bool(collector.count) != is_exporting:
        raise SystemExit(f"{server}, {mode}, {callers}: the sink was sent {collector.count} requests")
    return Measured(per_second, p99_ms, collector.count)


def check(url: str, mode: str, callers: str) -> None:
    """The application is in the trace of its caller; without tracing it is in none."""
    request = urllib.request.Request(url, headers={"traceparent": TRACEPARENTS[callers]})
    with urllib.request.urlopen(request, timeout=60) as response:
        found = response.read().decode()
    expected = NO_TRACE if mode == "none" else TRACE_ID
    if found != expected:
        raise SystemExit(f"{mode}, {callers}: the application is in trace {found}, not in {expected}")


def load(url: str, callers: str, seconds: int) -> tuple[float, float]:
    """Requests per second, and the 99th percentile of the latency in ms."""
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", "--latency"]
    command += ["--header", f"traceparent: {TRACEPARENTS[callers]}", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", said)
    if rate is None or p99 is None or "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"wrk says:\n{said}")
    return float(rate[1]), float(p99[1]) * UNITS_MS[p99[2]]


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    with Sink() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def wait_for_export(collector: Sink) -> None:
    deadline = time.monotonic() + EXPORTED_WITHIN_S
    while not collector.count and time.monotonic() < deadline:
        time.sleep(0.05)


@contextlib.contextmanager
def serving(server: str, mode: str, sink_port: int) -> Iterator[str]:
    """The URL of a server process that answers already."""
    # A port, not a socket of ours: asyncio leaves Nagle's algorithm on where uvicorn is given one, and all waits 40 ms.
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *(part.format(port=port) for part in SERVERS[server])],
        cwd=Path(__file__).resolve().parents[1],
        env=environment(mode, sink_port),
    )
    try:
        wait_for_listener(process, port)
        yield f"http://127.0.0.1:{port}/orders/7"
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
    return port


def wait_for_listener(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=60):
            return
        time.sleep(0.05)
    raise SystemExit(f"the server has ended with {process.returncode}")


def environment(mode: str, sink_port: int) -> dict[str, str]:
    """Nothing of OpenTelemetry's that is set out here reaches the server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    own = {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"} if mode == "tracefill" else {}
    return {
        **inherited,
        **own,
        "LOAD_MODE": mode,
        "OTEL_SERVICE_NAME": "load",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}",
    }


# -------------------------------------------------------------------------------------------------- in the server process


def starlette_app() -> Any:
    instrument("opentelemetry.instrumentation.starlette", "StarletteInstrumentor")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def show(request: Request) -> PlainTextResponse:
        return PlainTextResponse(trace_here())

    return Starlette(routes=[Route("/orders/{order_no}", show)])


def flask_app() -> Any:
    instrument("opentelemetry.instrumentation.flask", "FlaskInstrumentor")
    from flask import Flask

    app = Flask("load")

    @app.get("/orders/<order_no>")
    def show(order_no: str) -> str:
        return trace_here()

    return app


def instrument(contrib_module: str, contrib_class: str) -> None:
    """What the mode asks for, before the application is made."""
    mode = os.environ["LOAD_MODE"]
    if mode == "none":
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    if mode == "contrib":
        getattr(__import__(contrib_module, fromlist=[contrib_class]), contrib_class)().instrument()
    else:
        import tracefill

        tracefill.install()


def trace_here() -> str:
    """The trace that the application is in; zeros where it is in none."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


if __name__ == "__main__":
    main()
