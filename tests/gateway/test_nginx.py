"""The nginx configuration of the documentation, before a gateway of ours."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.trace import SpanKind

from tests.calls.running import SPAN_ID, TRACE_ID, Response, asgi, ask, send
from tracefill.calls.asgi import Middleware
from tracefill.gateway.asgi import Gateway

CONFIGURATION = Path(__file__).resolve().parents[2] / "docs" / "nginx.conf"
REQUEST_ID = "6f5902ac237e4f0e8a1c2f1d6c0b9d3e"


class Edge:
    """nginx before an application that tells what it got."""

    def __init__(self, nginx: Any, port: int, folder: Path) -> None:
        self.log = folder / "access.log"
        self.served = 0
        url = nginx.serve(
            f"""access_log {self.log} traced;
            location / {{
                proxy_set_header X-Request-ID $trace_id;
                proxy_set_header traceparent $traceparent;
                proxy_pass http://127.0.0.1:{port};
            }}""",
            CONFIGURATION.read_text(),
        )
        self.port = int(urlsplit(url).port or 0)

    def ask(self, headers: dict[str, str]) -> tuple[Response, dict[str, Any]]:
        """The answer, and the line that nginx logged."""
        return self.answered(lambda: ask(self.port, "/orders/1", headers))

    def answered(self, asking: Callable[[], Response]) -> tuple[Response, dict[str, Any]]:
        """The same for a request that somebody sends by himself. Its span has ended when this returns."""
        before, served = self.log.stat().st_size if self.log.exists() else 0, self.served
        response = asking()
        deadline = time.monotonic() + 30
        while not self.log.exists() or self.log.stat().st_size == before or self.served == served:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return response, json.loads(self.log.read_text().splitlines()[-1])


@pytest.fixture
def edge(nginx: Any, tmp_path: Path) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        seen = json.dumps({name: headers.get(name) for name in ("x-request-id", "traceparent")}).encode()
        length = (b"content-length", str(len(seen)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": seen})

    gateway = Gateway(Middleware(app))

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        await gateway(scope, receive, send)
        if scope["path"] == "/orders/1":
            edge.served += 1

    tmp_path.chmod(0o755)
    with asgi(counted) as port:
        edge = Edge(nginx, port, tmp_path)
        yield edge


def server_span(spans: Any) -> Any:
    """That of the request; nginx's start asks for `/` to see whether it answers."""
    served = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    (span,) = [span for span in served if span.attributes["url.path"] == "/orders/1"]
    return span


def test_one_new_id_is_in_both_headers_the_log_the_span_and_the_answer(edge: Edge, spans: Any) -> None:
    response, logged = edge.ask({})
    seen = json.loads(response.body)
    request_id = logged["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert seen["x-request-id"] == response.headers["x-request-id"] == request_id
    assert seen["traceparent"] == logged["traceparent"] == f"00-{request_id}-{request_id[:16]}-03"
    assert f"{server_span(spans).context.trace_id:032x}" == request_id
    assert logged["status"] == 200


def test_two_requests_have_two_ids(edge: Edge) -> None:
    assert edge.ask({})[1]["request_id"] != edge.ask({})[1]["request_id"]


def test_a_valid_request_id_names_the_trace(edge: Edge, spans: Any) -> None:
    response, logged = edge.ask({"X-Request-ID": REQUEST_ID})
    assert logged["request_id"] == response.headers["x-request-id"] == REQUEST_ID
    assert f"{server_span(spans).context.trace_id:032x}" == REQUEST_ID


def test_a_valid_traceparent_wins(edge: Edge, spans: Any) -> None:
    traceparent = f"00-{TRACE_ID}-{SPAN_ID}-01"
    response, logged = edge.ask({"X-Request-ID": REQUEST_ID, "traceparent": traceparent})
    assert logged["request_id"] == response.headers["x-request-id"] == TRACE_ID
    assert logged["traceparent"] == traceparent
    assert logged["sent_request_id"] == REQUEST_ID
    assert f"{server_span(spans).parent.span_id:016x}" == SPAN_ID


@pytest.mark.parametrize(
    ("headers", "trace_id"),
    [
        ({"b3": f"{TRACE_ID}-{SPAN_ID}-1"}, TRACE_ID),
        ({"b3": f"{TRACE_ID[16:]}-{SPAN_ID}-1"}, f"{'0' * 16}{TRACE_ID[16:]}"),
        ({"X-B3-TraceId": TRACE_ID, "X-B3-SpanId": SPAN_ID, "X-B3-Sampled": "1"}, TRACE_ID),
        ({"b3": f"{TRACE_ID}-{SPAN_ID}-1", "X-Request-ID": REQUEST_ID, "traceparent": "no"}, TRACE_ID),
    ],
)
def test_a_b3_caller_stays_the_parent(edge: Edge, spans: Any, headers: dict[str, str], trace_id: str) -> None:
    response, logged = edge.ask(headers)
    assert logged["traceparent"] == ""
    assert logged["request_id"] == response.headers["x-request-id"] == trace_id
    assert f"{server_span(spans).context.trace_id:032x}" == trace_id
    assert f"{server_span(spans).parent.span_id:016x}" == SPAN_ID


@pytest.mark.parametrize("b3", ["0", "d", f"{'0' * 32}-{SPAN_ID}-1", "x" * 32])
def test_b3_without_a_position_is_no_position(edge: Edge, spans: Any, b3: str) -> None:
    _, logged = edge.ask({"b3": b3})
    assert logged["traceparent"] == f"00-{logged['request_id']}-{logged['request_id'][:16]}-03"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Request-ID": "0" * 32},
        {"X-Request-ID": "order-4711"},
        {"X-Request-ID": '"},{"status":999'},
        {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
        {"traceparent": f"00-{TRACE_ID}-{'0' * 16}-01"},
        {"traceparent": f"00-{TRACE_ID.upper()}-{SPAN_ID}-01"},
        {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01-x"},
    ],
)
def test_what_is_not_valid_is_replaced(edge: Edge, spans: Any, headers: dict[str, str]) -> None:
    response, logged = edge.ask(headers)
    assert re.fullmatch("[0-9a-f]{32}", logged["request_id"])
    assert logged["request_id"] not in (TRACE_ID, "0" * 32)
    assert logged["status"] == 200
    assert f"{server_span(spans).context.trace_id:032x}" == logged["request_id"] == response.headers["x-request-id"]


def test_two_traceparents_do_not_pass_for_one(edge: Edge, spans: Any) -> None:
    line = f"traceparent: 00-{TRACE_ID}-{SPAN_ID}-01\r\n"
    request = f"GET /orders/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{line}{line}\r\n".encode()
    response, _ = edge.answered(lambda: send(edge.port, request))
    seen = json.loads(response.body)
    assert re.fullmatch(f"00-{seen['x-request-id']}-[0-9a-f]{{16}}-0[0-3]", seen["traceparent"])
    assert response.headers["x-request-id"] == seen["x-request-id"] == f"{server_span(spans).context.trace_id:032x}"
    if version(response) >= (1, 23):  # before, nginx shows nobody but the first of several lines
        assert seen["x-request-id"] != TRACE_ID


def version(response: Response) -> tuple[int, ...]:
    return tuple(map(int, response.headers["server"].removeprefix("nginx/").split(".")))
