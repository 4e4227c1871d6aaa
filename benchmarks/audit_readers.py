"""How fast `tracefill audit` reads and judges: a shop of ten spans a trace, as Python's file exporter writes it.

    python -m benchmarks.audit_readers --spans 2000000 --processes 2
    python -m benchmarks.audit_readers --spans 10000000 --format parquet

The file is made in a temporary folder, read and audited in a fresh interpreter, and deleted. A reading that does not
find the spans that were written is marked wrong, whatever its speed. CPU seconds are those of all processes; the peak
of memory is that of the first and, while others read, the largest peak of them for each of them on top.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SERVICES = ("gateway", "orders", "stock", "mailer")
BATCH_SPANS = 512
SERVER = 2
MINUTE_NS = 60 * 10**9
BEGIN_NS = 1_767_225_600 * 10**9

# (service, kind, library, name, parent's place in the trace, attributes that are the same in every trace)
SHAPE = (
    ("gateway", 2, "opentelemetry.instrumentation.asgi", "POST /orders", None, ("http.route", "/orders")),
    ("gateway", 3, "opentelemetry.instrumentation.httpx", "POST", 0, ("server.address", "orders")),
    ("orders", 2, "opentelemetry.instrumentation.asgi", "POST /orders/{id}", 1, ("http.route", "/orders/{id}")),
    ("orders", 3, "opentelemetry.instrumentation.psycopg", "INSERT", 2, ("db.system.name", "postgresql")),
    ("orders", 1, "shop.orders", "price", 2, ("shop.tenant", "north")),
    ("orders", 3, "opentelemetry.instrumentation.grpc", "stock.Stock/Reserve", 2, ("server.address", "stock")),
    ("stock", 2, "opentelemetry.instrumentation.grpc", "stock.Stock/Reserve", 5, ("rpc.system", "grpc")),
    ("stock", 3, "opentelemetry.instrumentation.redis", "DECRBY", 6, ("db.system.name", "redis")),
    ("orders", 4, "opentelemetry.instrumentation.kafka", "orders.placed send", 2, ("messaging.system", "kafka")),
    ("mailer", 5, "opentelemetry.instrumentation.kafka", "orders.placed process", 8, ("messaging.system", "kafka")),
)


def write_shop(path: Path, spans: int, seed: int = 1) -> None:
    """A file of OTLP JSON lines with so many spans, ten a trace, 512 a line, each service in its own batches."""
    batches: dict[str, dict[str, list[str]]] = {service: {} for service in SERVICES}
    with path.open("w") as file:
        for service, library, span in _spans(spans // len(SHAPE), random.Random(seed)):
            batch = batches[service]
            batch.setdefault(library, []).append(span)
            if sum(map(len, batch.values())) == BATCH_SPANS:
                file.write(_line(service, batch))
                batch.clear()
        file.writelines(_line(service, batch) for service, batch in batches.items() if batch)


def _spans(traces: int, draw: random.Random) -> Iterator[tuple[str, str, str]]:
    for number in range(traces):
        trace_id = f"{draw.getrandbits(128):032x}"
        ids = [f"{draw.getrandbits(64):016x}" for _ in SHAPE]
        begin = BEGIN_NS + 30 * MINUTE_NS * number // traces
        for place, (service, kind, library, name, parent, (key, value)) in enumerate(SHAPE):
            start = begin + place * 2_000_000 + draw.getrandbits(10)
            end = begin + 60_000_000 - place * 1_000_000
            above = f'"parentSpanId":"{ids[parent]}",' if parent is not None else ""
            yield (
                service,
                library,
                f'{{"traceId":"{trace_id}","spanId":"{ids[place]}",{above}"flags":256,"name":"{name}","kind":{kind},'
                f'"startTimeUnixNano":"{start}","endTimeUnixNano":"{end}","attributes":['
                f"{_attributes(kind, key, value, number, draw)}"
                '],"status":{}}',
            )


def _attributes(kind: int, key: str, value: str, number: int, draw: random.Random) -> str:
    told = [(key, value), ("shop.order", f"{number:08d}"), ("network.protocol.version", "1.1")]
    if key in ("http.route", "server.address"):
        told += [("http.request.method", "POST"), ("user_agent.original", "shop/1.0 (checkout)")]
        path = f"/api/v1/orders/{number}"
        told.append(("url.path", path) if kind == SERVER else ("url.full", f"http://{value}:8080{path}?expand=lines"))
    texts = ",".join(f'{{"key":"{name}","value":{{"stringValue":"{text}"}}}}' for name, text in told)
    thread = 140_000_000_000 + draw.getrandbits(3)
    return f'{texts},{{"key":"thread.id","value":{{"intValue":"{thread}"}}}}'


def _line(service: str, batch: dict[str, list[str]]) -> str:
    scopes = ",".join(
        f'{{"scope":{{"name":"{library}","version":"0.66b1"}},"spans":[{",".join(spans)}]}}'
        for library, spans in batch.items()
    )
    attributes = ",".join(
        f'{{"key":"{key}","value":{{"stringValue":"{value}"}}}}'
        for key, value in (
            ("telemetry.sdk.language", "python"),
            ("service.instance.id", f"{service}-1"),
            ("service.name", service),
        )
    )
    return f'{{"resourceSpans":[{{"resource":{{"attributes":[{attributes}]}},"scopeSpans":[{scopes}]}}]}}\n'


def write_parquet(path: Path, spans: int) -> None:
    """The same shop in the layout of `otel_traces`, made by columns: ids and times are drawn by DuckDB."""
    import duckdb

    shape = ", ".join(
        f"({place}, '{service}', '{kind}', '{library}', '{name}', {-1 if parent is None else parent}, '{key}', '{value}')"
        for place, (service, kind, library, name, parent, (key, value)) in enumerate(SHAPE)
    )
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (
                SELECT
                    make_timestamp_ns({BEGIN_NS} + 1800000000000 * trace // {spans // len(SHAPE)} + place * 2000000) AS Timestamp,
                    md5(trace::VARCHAR) AS TraceId,
                    left(md5(trace || '.' || place), 16) AS SpanId,
                    if(parent < 0, '', left(md5(trace || '.' || parent), 16)) AS ParentSpanId,
                    name AS SpanName, kind AS SpanKind, service AS ServiceName, library AS ScopeName,
                    MAP {{'service.instance.id': service || '-1'}} AS ResourceAttributes,
                    MAP {{key: value, 'url.path': '/api/v1/orders/' || trace, 'thread.id': '140'}} AS SpanAttributes,
                    60000000 - place * 3000000 AS Duration
                FROM range({spans // len(SHAPE)}) AS traces(trace),
                    (VALUES {shape}) AS shape(place, service, kind, library, name, parent, key, value)
            ) TO '{path}' (FORMAT parquet)
        """)


def measure(path: Path, processes: int) -> str:
    """Read the file and audit it here; one line of figures."""
    from tracefill.audit.chains import audit
    from tracefill.audit.readers import read

    begin = time.perf_counter()
    spans = read([str(path)], processes=processes)
    found, read_s, read_cpu_s = len(spans), time.perf_counter() - begin, _cpu_s()
    read_mb = _peak_mb(processes)
    chains = audit(spans)["chains"]
    return (
        f"{found:,} spans, {path.stat().st_size / 1e6:,.0f} MB, {chains['whole']:,} of {chains['total']:,} whole | "
        f"read {read_s:.1f} s ({read_cpu_s:.1f} s of CPU, {found / read_s:,.0f} spans/s, {read_mb} MB) | "
        f"read and audited {time.perf_counter() - begin:.1f} s ({_cpu_s():.1f} s of CPU, {max(read_mb, _peak_mb(0))} MB)"
    )


def _cpu_s() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb(processes: int) -> int:
    here, others = (resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (here + processes * others) // 1024


def main() -> None:
    """Make the file, measure, delete it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.measure:
        print(measure(told.measure, told.processes))
    else:
        _measure_apart(told)


def _measure_apart(told: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"shop.{told.format}"
        (write_shop if told.format == "jsonl" else write_parquet)(path, told.spans)
        again = [
            sys.executable,
            "-m",
            "benchmarks.audit_readers",
            "--processes",
            str(told.processes),
            "--measure",
            path,
        ]
        line = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout
        expected = f"{told.spans // len(SHAPE) * len(SHAPE):,} spans"
        print(line.strip() if line.startswith(expected) else f"WRONG, expected {expected}: {line.strip()}")


if __name__ == "__main__":
    main()
