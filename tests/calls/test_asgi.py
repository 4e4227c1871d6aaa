"""ASGI applications with tracefill's middleware, served by uvicorn and hypercorn in processes of their own.

Each path is /variant/deed: by which middleware the application is wrapped, and what it does. /spans tells what has ended.
"""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

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
from tracefill.calls.asgi import Middleware

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--port={port}", "--factory", "tests.calls.test_asgi:{app}"],
    "hypercorn": ["-m", "hypercorn", "--bind=127.0.0.1:{port}", "tests.calls.test_asgi:{app}()"],
}

_tracer = trace.get_tracer("tests")
_lifespan = ["down"]

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
        "contrib_inside": Middleware(quiet_contrib(service)),
        "contrib_outside": quiet_contrib(Middleware(service)),
    }

    async def choose(scope: Any, receive: Any, send: Any) -> None:
        if not await tell(scope, send):
            variant = "plain" if scope["type"] == "lifespan" else scope["path"].split("/")[1]
            await apps[variant](scope, receive, send)

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
    return quiet_contrib(chained)


def quiet_contrib(app: Any) -> Any:
    """Contrib's middleware without its spans of single messages."""
    return OpenTelemetryMiddleware(app, exclude_spans=["send", "receive"])


async def chained(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan" or await tell(scope, send):
        return
    if scope["path"] == "/front":
        url = f"http://127.0.0.1:{scope['server'][1]}/back"
        await respond(send, await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read()))
    else:
        _tracer.start_span("far").end()
        await respond(send, b"done")


async def tell(scope: Any, send: Any) -> bool:
    """Answers /spans; False for all other paths."""
    is_asked: bool = scope.get("path") == "/spans"
    if is_asked:
        await respond(send, spans_told(Counting.built))
    return is_asked


class Counting(Middleware):
    built = 0

    def _attributes(self, asgi_scope: Any) -> dict[str, Any]:
        Counting.built += 1
        return super()._attributes(asgi_scope)


async def service(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    deed = scope["path"].split("/")[2]
    if deed == "fail":
        raise KeyError("order")
    if deed in DEEDS:
        await DEEDS[deed](receive, send)
    elif deed == "context":
        await respond(send, str(dict(otel_context.get_current())).encode())
    elif deed == "lifespan":
        await respond(send, _lifespan[0].encode())
    else:
        await respond(send, position(), 503 if deed == "unavailable" else 200)


async def live(receive: Any, send: Any) -> None:
    for state in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{state}"
        _lifespan[0] = f"{state}, {len(otel_context.get_current())} in the context"
        await send({"type": f"lifespan.{state}.complete"})


async def start(send: Any, status: int = 200) -> None:
    headers = [(b"x-answer", b"yes"), (b"set-cookie", b"a=b")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    await start(send, status)
    await send({"type": "http.response.body", "body": body})


async def stream(receive: Any, send: Any) -> None:
    await start(send)
    for _ in range(3):
        with _tracer.start_as_current_span("step"):
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": position() + b"\n", "more_body": True})
    await send({"type": "http.response.body"})


async def fail_late(receive: Any, send: Any) -> None:
    await start(send)
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    raise KeyError("order")


async def endless(receive: Any, send: Any) -> None:
    """For clients who do not stay to its end."""
    await start(send)
    gone = asyncio.create_task(disconnected(receive))
    while not gone.done():
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        await asyncio.sleep(0.001)
    _tracer.start_span("closed").end()


async def disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def background(receive: Any, send: Any) -> None:
    await respond(send, b"done")
    await asyncio.sleep(0.05)
    _tracer.start_span("closed").end()


DEEDS = {"stream": stream, "fail_late": fail_late, "endless": endless, "background": background}


def _on_request(span: Any, scope: Any) -> None:
    span.set_attribute("asked", scope["path"])


def _on_response(span: Any, scope: Any, message: Any) -> None:
    span.set_attribute("answered", f"{message['status']} {dict(message['headers'])[b'x-answer'].decode()}")


def _fail(*_: Any) -> None:
    raise RuntimeError("a hook's own")


# --------------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip(request.param)
    with serving(SERVERS[request.param], "variants", tmp_path_factory.mktemp("asgi") / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        assert running.ask("/bare/context").body == b"{}"
        assert "Failed to detach" not in running.log.read_text()


class TestMiddleware(MiddlewareContract):
    answered = "200 yes"


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
        "server.port": server.port,
        "user_agent.original": "me",
    }.items() <= span["attributes"].items()


def test_a_streamed_body_is_made_inside_of_the_span(server: Running) -> None:
    response = server.ask("/plain/stream")
    span = server.ended("SERVER", "/plain/stream")
    assert response.body.count(traceparent(span)) == 3
    steps = [step for step in server.spans() if step["name"] == "step" and step["parent"] == span["id"]]
    assert len(steps) == 3
    assert span["end"] >= max(step["end"] for step in steps)


def test_what_the_application_does_after_the_response_is_inside_of_the_span(server: Running) -> None:
    server.ask("/plain/background")
    span, closed = server.ended("SERVER", "/plain/background"), server.ended("closed", "/plain/background")
    assert closed["parent"] == span["id"]
    assert closed["end"] <= span["end"]


def test_an_unsampled_caller_costs_no_span_and_no_attribute(server: Running) -> None:
    before = server.told()
    response = server.ask("/counting/stream", {"traceparent": UNSAMPLED})
    assert response.body.count(UNSAMPLED.encode()) == 3
    assert server.told() == before
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
    assert span["scope"] == "opentelemetry.instrumentation.asgi"
    assert traceparent(span) in response.body


def test_lifespan_passes_and_is_no_request(server: Running) -> None:
    assert server.ask("/plain/lifespan").body == b"startup, 0 in the context"
    assert all("url.path" in span["attributes"] for span in server.spans() if span["scope"] == "tracefill.calls.asgi")


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


@pytest.mark.parametrize("app", ["chain", "contrib_chain"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_program_that_names_none_of_our_middleware_keeps_its_chain(name: str, app: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    with serving(SERVERS[name], app, tmp_path / "log") as running:
        assert running.ask("/front").body == b"done"
        wait_for(lambda: SPAN_ID in [span["parent"] for span in running.spans()])  # the last that ends
        assert_chain(running.spans())
        assert "Failed to detach" not in running.log.read_text()
