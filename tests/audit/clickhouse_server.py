"""ClickHouse's engine behind ClickHouse's HTTP interface: as much of the server as a package from PyPI has.

Every query runs in the real engine (chdb); the interface answers as the server does: the query is the body of a POST,
an error is a status of its own with `Code: ...` in the body, and only the right user is let in.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from chdb.session import Session

from tests.audit.systems import Span
from tests.audit.written import OTEL_TRACES, rows

MAP, JSON = "Map(LowCardinality(String), String)", "JSON"
USER, PASSWORD = "reader", "s@cret"


class ClickHouse:
    """An engine with databases of its own; the process has one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = Session(str(folder / "engine"))
        self._lock = threading.Lock()
        self.queries: list[str] = []

    def query(self, sql: str, settings: dict[str, Any] | None = None) -> bytes:
        with self._lock:
            self.queries.append(sql)
            told = ", ".join(f"{name} = {value}" for name, value in (settings or {}).items())
            if told:
                self.session.query(f"SET {told}")
            return bytes(self.session.query(sql).bytes())

    def fill(self, table: str, spans: Sequence[Span], attributes: str = MAP) -> None:
        """A table of these spans in the layout of the Collector's exporter; attributes are MAP or JSON."""
        database = table.partition(".")[0]
        self.query(f"CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic")
        columns = OTEL_TRACES.format(attributes=attributes)
        order = "(ServiceName, SpanName, toDateTime(Timestamp), Timestamp)"
        self.query(
            f"CREATE TABLE {table} ({columns}) ENGINE = MergeTree PARTITION BY toDate(Timestamp) ORDER BY {order}"
        )
        path = self.folder / f"{table}.jsonl"
        path.write_text("".join(json.dumps(_row(row)) + "\n" for row in rows(spans)))
        self.query(f"INSERT INTO {table} SELECT * FROM file('{path}', JSONEachRow, '{_structure(columns)}')")

    def __enter__(self) -> ClickHouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def _row(row: dict[str, Any]) -> dict[str, Any]:
    seconds, nanoseconds = divmod(row["Timestamp"], 1_000_000_000)
    links = len(row["Links.TraceId"])
    return row | {
        "Timestamp": f"{seconds}.{nanoseconds:09d}",
        "Links.TraceState": [""] * links,
        "Links.Attributes": [{}] * links,
    }


def _structure(columns: str) -> str:
    return " ".join(columns.split()).replace("'", "''")


@contextmanager
def served(engine: ClickHouse) -> Iterator[str]:
    """The engine's HTTP interface, at the `host:port` that is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sql = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if (self.headers["X-ClickHouse-User"], self.headers["X-ClickHouse-Key"]) != (USER, PASSWORD):
                return self._answer(403, b"Code: 516. DB::Exception: reader: Authentication failed")
            try:
                return self._answer(200, engine.query(sql, dict(parse_qsl(urlsplit(self.path).query))))
            except RuntimeError as error:
                return self._answer(404 if "UNKNOWN_TABLE" in str(error) else 500, str(error).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
