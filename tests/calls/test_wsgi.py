"""WSGI applications with tracefill's middleware, served by gunicorn, waitress and wsgiref in processes of their own.

Each path is /variant/deed: by which middleware the application is wrapped, and what it does. /spans tells what has ended.
"""

from __future__ import annotations

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

import tracefill
from tests.calls.middleware_contract import (
    MiddlewareContract,
    Running,
    assert_chain,
    position,
    record_spans,
    serving,
    spans_told,
    traceparent,
)
from tests.calls.running import SPAN_ID, TRACE_ID, UNSAMPLED, wait_for
from tracefill.calls.wsgi import Middleware

SERVERS = {
    "gunicorn": ["-m", "gunicorn", "--threads=4", "--bind=127.0.0.1:{port}", "tests.calls.test_wsgi:{app}()"],
    "waitress": ["-m", "waitress", "--listen=127.0.0.1:{port}", "--call", "tests.calls.test_wsgi:{app}"],
    "wsgiref": ["-m", "tests.calls.test_wsgi", "{app}", "{port}"],
}

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


def told(environ: Any, start_response: Any) -> list[bytes]:
    """The answer to /spans; empty for all other paths."""
    if environ["PATH_INFO"] != "/spans":
        return []
    start_response("200 OK", [("Content-Type", "application/json")])
    return [spans_told(Counting.built)]


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


class TestMiddleware(MiddlewareContract):
    answered = "200 OK yes"


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
    (span,) = found()
    assert (span["kind"], span["trace"], span["parent"]) == ("SERVER", TRACE_ID, SPAN_ID)
    assert span["scope"] == "opentelemetry.instrumentation.wsgi"
    assert traceparent(span) in response.body


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


if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(sys.argv[2]), {"variants": variants}[sys.argv[1]]()).serve_forever()
