"""WSGI applications with tracefill's middleware, served by gunicorn, waitress and wsgiref in processes of their own.

Each path is /variant/deed: by which middleware the application is wrapped, and what it does. /spans tells what has ended.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import tracefill
from tests.calls.running import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, Response, here, wait_for
from tracefill.calls.wsgi import Middleware

SERVERS = {
    "gunicorn": ["-m", "gunicorn", "--threads=4", "--bind=127.0.0.1:{port}", "tests.calls.test_wsgi:{app}()"],
    "waitress": ["-m", "waitress", "--listen=127.0.0.1:{port}", "--call", "tests.calls.test_wsgi:{app}"],
    "wsgiref": ["-m", "tests.calls.test_wsgi", "{app}", "{port}"],
}

Span = dict[str, Any]
_exporter = InMemorySpanExporter()
_tracer = trace.get_tracer("tests")

# ------------------------------------------------------------------------------------------------------ the server process


def variants() -> Any:
    """The application under every middleware that is tested, told apart by the first part of the path."""
    record_spans()
    apps = {
        "bare": service,
        "plain": Middleware(service),
        "excluded": Middleware(service, excluded_urls="/excluded/position$"),
        "hooked": Middleware(service, request_hook=_on_request, response_hook=_on_response),
        "failing": Middleware(service, request_hook=_fail, response_hook=_fail),
        "headers": Middleware(
            service,
            request_headers=["x-tenant", "authorization", "x-pin"],
            response_headers=["x-answer", "set-cookie"],
            secret_headers=["x-pin"],
        ),
        "counting": Counting(service),
        "unread": closing_unread(Middleware(service)),
        "contrib_inside": Middleware(OpenTelemetryMiddleware(service)),
        "contrib_outside": OpenTelemetryMiddleware(Middleware(service)),
    }

    def choose(environ: Any, start_response: Any) -> Any:
        return told(environ, start_response) or apps[environ["PATH_INFO"].split("/")[1]](environ, start_response)

    return choose


def chain() -> Any:
    """A program that names no middleware: /front asks /back, which works."""
    record_spans()
    tracefill.install()
    return chained


def contrib_chain() -> Any:
    """The same with contrib's middleware."""
    record_spans()
    tracefill.install()
    return OpenTelemetryMiddleware(chained)


def chained(environ: Any, start_response: Any) -> list[bytes]:
    if answer := told(environ, start_response):
        return answer
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/front":
        with urllib.request.urlopen(f"http://{environ['HTTP_HOST']}/back", timeout=60) as response:
            return [response.read()]
    _tracer.start_span("far").end()
    return [b"done"]


def record_spans() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)


def told(environ: Any, start_response: Any) -> list[bytes]:
    """The answer to /spans; empty for all other paths."""
    if environ["PATH_INFO"] != "/spans":
        return []
    start_response("200 OK", [("Content-Type", "application/json")])
    return [spans_told(Counting.built)]


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


class Counting(Middleware):
    built = 0

    def _attributes(self, environ: Any) -> dict[str, Any]:
        Counting.built += 1
        return super()._attributes(environ)


def service(environ: Any, start_response: Any) -> Any:
    deed = environ["PATH_INFO"].split("/")[2]
    if deed == "fail":
        raise KeyError("order")
    if deed == "context":
        body = str(dict(otel_context.get_current())).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    status = "503 Service Unavailable" if deed == "unavailable" else "200 OK"
    start_response(status, [("X-Answer", "yes"), ("Set-Cookie", "a=b")])
    return BODIES[deed]() if deed in BODIES else [position()]


def position() -> bytes:
    return here()["traceparent"].encode()


def stream() -> Iterator[bytes]:
    for _ in range(3):
        with _tracer.start_as_current_span("step"):
            time.sleep(0.001)
        yield position() + b"\n"


def fail_late() -> Iterator[bytes]:
    yield b"first"
    raise KeyError("order")


class Endless:
    """A body for clients who do not stay to its end."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    def close(self) -> None:
        _tracer.start_span("closed").end()


BODIES: dict[str, Callable[[], Any]] = {"stream": stream, "fail_late": fail_late, "endless": Endless}


def closing_unread(app: Any) -> Any:
    """As a cache does that answers 304: the body is asked for, and closed."""

    def call(environ: Any, start_response: Any) -> list[bytes]:
        app(environ, lambda *_: None).close()
        start_response("200 OK", [])
        return []

    return call


def _on_request(span: Any, environ: Any) -> None:
    span.set_attribute("asked", environ["PATH_INFO"])


def _on_response(span: Any, environ: Any, status: str, headers: Any) -> None:
    span.set_attribute("answered", f"{status} {dict(headers)['X-Answer']}")


def _fail(*_: Any) -> None:
    raise RuntimeError("a hook's own")


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


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip(request.param)
    with serving(SERVERS[request.param], "variants", tmp_path_factory.mktemp("wsgi") / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        for _ in range(4):  # as many as there are threads
            assert running.ask("/bare/context").body == b"{}"
        assert "Failed to detach" not in running.log.read_text()


def traceparent(span: Span) -> bytes:
    return f"00-{span['trace']}-{span['id']}-01".encode()


def test_a_request_is_one_span_below_its_caller(server: Running) -> None:
    response = server.ask("/plain/position?page=2&sig=secret", {"User-Agent": "me"})
    span = server.ended("SERVER", "/plain/position")
    assert (span["name"], span["trace"], span["parent"], span["status"]) == ("GET", TRACE_ID, SPAN_ID, "UNSET")
    assert response.body == traceparent(span)
    assert {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/plain/position",
        "url.query": "page=2&sig=REDACTED",
        "server.address": "127.0.0.1",
        "user_agent.original": "me",
    }.items() <= span["attributes"].items()


def test_a_streamed_body_is_made_inside_of_the_span(server: Running) -> None:
    response = server.ask("/plain/stream")
    span = server.ended("SERVER", "/plain/stream")
    assert response.body.count(traceparent(span)) == 3
    steps = [step for step in server.spans() if step["name"] == "step" and step["parent"] == span["id"]]
    assert len(steps) == 3
    assert span["end"] >= max(step["end"] for step in steps)


def test_a_body_that_is_closed_unread_ends_the_span_after_its_close(server: Running) -> None:
    assert server.ask("/unread/endless").status == 200
    span, closed = server.ended("SERVER", "/unread/endless"), server.ended("closed", "/unread/endless")
    assert closed["parent"] == span["id"]
    assert closed["end"] <= span["end"]


def test_a_client_that_has_gone_ends_the_span_and_is_no_error(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"GET /plain/endless HTTP/1.1\r\nHost: h\r\ntraceparent: {SAMPLED}\r\n\r\n".encode())
        assert connection.recv(1000)
    span, closed = server.ended("SERVER", "/plain/endless"), server.ended("closed", "/plain/endless")
    assert closed["parent"] == span["id"]
    assert (span["status"], span["exceptions"]) == ("UNSET", [])


def test_an_exception_is_recorded_and_passed_on(server: Running) -> None:
    response = server.ask("/plain/fail")
    span = server.ended("SERVER", "/plain/fail")
    assert response.status == 500  # the server's own answer to it
    assert (span["status"], span["exceptions"], span["attributes"]["error.type"]) == ("ERROR", ["KeyError"], "KeyError")


def test_an_exception_in_the_body_is_recorded(server: Running) -> None:
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        server.ask("/plain/fail_late")
    span = server.ended("SERVER", "/plain/fail_late")
    assert (span["status"], span["exceptions"]) == ("ERROR", ["KeyError"])


def test_an_answer_that_blames_the_server_is_an_error(server: Running) -> None:
    assert server.ask("/plain/unavailable").status == 503
    span = server.ended("SERVER", "/plain/unavailable")
    assert (span["status"], span["exceptions"], span["attributes"]["error.type"]) == ("ERROR", [], "503")


def test_hooks_see_the_span(server: Running) -> None:
    server.ask("/hooked/position")
    attributes = server.ended("SERVER", "/hooked/position")["attributes"]
    assert attributes["asked"] == "/hooked/position"
    assert attributes["answered"] == "200 OK yes"


def test_hooks_that_fail_fail_alone(server: Running) -> None:
    response = server.ask("/failing/position")
    span = server.ended("SERVER", "/failing/position")
    assert (response.status, response.body, span["status"]) == (200, traceparent(span), "UNSET")


def test_an_excluded_url_has_no_span_and_keeps_its_caller(server: Running) -> None:
    before = server.told()
    assert server.ask("/excluded/position").body == SAMPLED.encode()
    assert server.told() == before
    server.ask("/excluded/other")
    server.ended("SERVER", "/excluded/other")


def test_headers_are_captured_and_secrets_are_not(server: Running) -> None:
    server.ask("/headers/position", {"X-Tenant": "a", "Authorization": "Basic 123", "X-Pin": "4711", "X-Other": "b"})
    attributes = server.ended("SERVER", "/headers/position")["attributes"]
    assert {name: value for name, value in attributes.items() if ".header." in name} == {
        "http.request.header.x-tenant": ["a"],
        "http.request.header.authorization": ["[REDACTED]"],
        "http.request.header.x-pin": ["[REDACTED]"],
        "http.response.header.x-answer": ["yes"],
        "http.response.header.set-cookie": ["[REDACTED]"],
    }


def test_an_unsampled_caller_costs_no_span_and_no_attribute(server: Running) -> None:
    before = server.told()
    response = server.ask("/counting/stream", {"traceparent": UNSAMPLED})
    assert response.body.count(UNSAMPLED.encode()) == 3
    after = server.told()
    assert after == before
    server.ask("/counting/position")
    assert server.told()["attributes_built"] == before["attributes_built"] + 1


@pytest.mark.parametrize("variant", ["contrib_inside", "contrib_outside"])
@pytest.mark.parametrize("deed", ["position", "stream"])
def test_beside_contribs_middleware_there_is_one_server_span(server: Running, variant: str, deed: str) -> None:
    def found() -> list[Any]:
        return [span for span in server.spans() if span["id"] not in before and span["name"] != "step"]

    before = {span["id"] for span in server.spans()}
    response = server.ask(f"/{variant}/{deed}")
    wait_for(lambda: SPAN_ID in [span["parent"] for span in found()])  # the last that ends
    (span,) = [span for span in found() if span["kind"] == "SERVER"]
    assert (span["trace"], span["parent"]) == (TRACE_ID, SPAN_ID)
    # Within an open span contrib's makes an INTERNAL one, which install() prevents; see the chains below.
    inner = [other for other in found() if other["id"] != span["id"]]
    assert [other["kind"] for other in inner] == ["INTERNAL"] * (variant == "contrib_inside")
    assert traceparent(inner[0] if inner else span) in response.body


def test_requests_at_once_keep_apart(server: Running) -> None:
    answers: dict[str, bytes] = {}

    def call(trace_id: str) -> None:
        caller = f"00-{trace_id}-{SPAN_ID}-01"
        answers[trace_id] = server.ask("/plain/stream", {"traceparent": caller}).body

    threads = [threading.Thread(target=call, args=(f"{i:032x}",)) for i in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 16
    for trace_id, body in answers.items():
        assert body.count(trace_id.encode()) == 3


@pytest.mark.parametrize(
    ("name", "app"),
    [
        ("gunicorn", "chain"),
        ("gunicorn", "contrib_chain"),
        ("waitress", "chain"),
        ("waitress", "contrib_chain"),
    ],
)
def test_a_program_that_names_none_of_our_middleware_keeps_its_chain(name: str, app: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    with serving(SERVERS[name], app, tmp_path / "log") as running:
        assert running.ask("/front").body == b"done"
        wait_for(lambda: SPAN_ID in [span["parent"] for span in running.spans()])  # the last that ends
        assert_chain(running.spans())
        assert "Failed to detach" not in running.log.read_text()


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


if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(sys.argv[2]), {"variants": variants}[sys.argv[1]]()).serve_forever()
