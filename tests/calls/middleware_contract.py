"""What tests of the WSGI and the ASGI middleware share: a server in a process of its own that tells its spans, and the contract."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.calls.running import SAMPLED, SPAN_ID, TRACE_ID, Response, here, wait_for

Span = dict[str, Any]
_exporter = InMemorySpanExporter()

# ------------------------------------------------------------------------------------------------------ the server process


def record_spans() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)


def spans_told(attributes_built: int) -> bytes:
    found = [told_of(span) for span in _exporter.get_finished_spans()]
    return json.dumps({"spans": found, "attributes_built": attributes_built}).encode()


def told_of(span: ReadableSpan) -> Span:
    assert span.context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": span.instrumentation_scope.name if span.instrumentation_scope else "",
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
        "exceptions": [dict(event.attributes or {})["exception.type"] for event in span.events],
        "end": span.end_time,
    }


def position() -> bytes:
    return here()["traceparent"].encode()


# --------------------------------------------------------------------------------------------------------------- the tests


class Running:
    """A server process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", self.port), timeout=60):
            return True
        return False

    def ask(self, path: str, headers: dict[str, str] | None = None) -> Response:
        """What it answers to a sampled caller."""
        return self._get(path, {"traceparent": SAMPLED} | (headers or {}))

    def _get(self, path: str, headers: dict[str, str]) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as response:
            return Response(
                response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
            )

    def told(self) -> Any:
        return json.loads(self._get("/spans", {}).body)

    def spans(self) -> list[Span]:
        found: list[Span] = self.told()["spans"]
        return found

    def ended(self, name: str, path: str) -> Span:
        """The one span of this kind or name below (or of) the request to the path, once it has ended."""
        wait_for(lambda: [span for span in self._of(path) if name in (span["kind"], span["name"])])
        found = [span for span in self._of(path) if name in (span["kind"], span["name"])]
        assert len(found) == 1, found
        return found[0]

    def _of(self, path: str) -> list[Span]:
        spans = self.spans()
        servers = {
            span["id"]
            for span in spans
            if path in (span["attributes"].get("url.path"), span["attributes"].get("http.target"))
        }
        return [span for span in spans if span["id"] in servers or span["parent"] in servers]


@contextlib.contextmanager
def serving(command: list[str], app: str, log: Path) -> Iterator[Running]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(part.format(port=port, app=app) for part in command)],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"},
            stdout=output,
            stderr=output,
        )
    try:
        running = Running(process, port, log)
        wait_for(running.is_up)
        yield running
    finally:
        process.terminate()
        process.wait(60)


def traceparent(span: Span) -> bytes:
    return f"00-{span['trace']}-{span['id']}-01".encode()


def assert_chain(spans: list[Span]) -> None:
    """The caller's trace is these four, each below the one before."""
    left = [span for span in spans if span["trace"] == TRACE_ID]
    above = SPAN_ID
    for kind in ("SERVER", "CLIENT", "SERVER", "INTERNAL"):
        (span,) = [span for span in left if span["parent"] == above]
        assert span["kind"] == kind
        left.remove(span)
        above = span["id"]
    assert span["name"] == "far"
    assert left == []


class MiddlewareContract:
    """Each path is /variant/deed: by which middleware the application is wrapped, and what it does. `server` serves it."""

    answered: str  # what the response hook has noted of an answer

    def test_a_client_that_has_gone_ends_the_span_and_is_no_error(self, server: Running) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(f"GET /plain/endless HTTP/1.1\r\nHost: h\r\ntraceparent: {SAMPLED}\r\n\r\n".encode())
            assert connection.recv(1000)
        span, closed = server.ended("SERVER", "/plain/endless"), server.ended("closed", "/plain/endless")
        assert closed["parent"] == span["id"]
        assert (span["status"], span["exceptions"]) == ("UNSET", [])

    def test_an_exception_is_recorded_and_passed_on(self, server: Running) -> None:
        response = server.ask("/plain/fail")
        span = server.ended("SERVER", "/plain/fail")
        assert response.status == 500  # the server's own answer to it
        assert (span["status"], span["exceptions"], span["attributes"]["error.type"]) == (
            "ERROR",
            ["KeyError"],
            "KeyError",
        )

    def test_an_exception_after_the_start_of_the_response_is_recorded(self, server: Running) -> None:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            server.ask("/plain/fail_late")
        span = server.ended("SERVER", "/plain/fail_late")
        assert (span["status"], span["exceptions"]) == ("ERROR", ["KeyError"])

    def test_an_answer_that_blames_the_server_is_an_error(self, server: Running) -> None:
        assert server.ask("/plain/unavailable").status == 503
        span = server.ended("SERVER", "/plain/unavailable")
        assert (span["status"], span["exceptions"], span["attributes"]["error.type"]) == ("ERROR", [], "503")

    def test_hooks_see_the_span(self, server: Running) -> None:
        server.ask("/hooked/position")
        attributes = server.ended("SERVER", "/hooked/position")["attributes"]
        assert attributes["asked"] == "/hooked/position"
        assert attributes["answered"] == self.answered

    def test_hooks_that_fail_fail_alone(self, server: Running) -> None:
        response = server.ask("/failing/position")
        span = server.ended("SERVER", "/failing/position")
        assert (response.status, response.body, span["status"]) == (200, traceparent(span), "UNSET")

    def test_an_excluded_url_has_no_span_and_keeps_its_caller(self, server: Running) -> None:
        before = server.told()
        assert server.ask("/excluded/position").body == SAMPLED.encode()
        assert server.told() == before
        server.ask("/excluded/other")
        server.ended("SERVER", "/excluded/other")

    def test_headers_are_captured_and_secrets_are_not(self, server: Running) -> None:
        server.ask(
            "/headers/position", {"X-Tenant": "a", "Authorization": "Basic 123", "X-Pin": "4711", "X-Other": "b"}
        )
        attributes = server.ended("SERVER", "/headers/position")["attributes"]
        assert {name: value for name, value in attributes.items() if ".header." in name} == {
            "http.request.header.x-tenant": ["a"],
            "http.request.header.authorization": ["[REDACTED]"],
            "http.request.header.x-pin": ["[REDACTED]"],
            "http.response.header.x-answer": ["yes"],
            "http.response.header.set-cookie": ["[REDACTED]"],
        }
