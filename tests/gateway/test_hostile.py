"""Requests that nobody sends who means well, to uvicorn and gunicorn with a gateway.

The service answers, before and after; nothing that came is reflected; nothing that is sent on grows without bound.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls.running import SAMPLED, Response, response_of

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {
    "uvicorn": ["uvicorn", "--http", "h11", "--fd", "{fd}", "tests.gateway.hostile_service:asgi_app"],
    "hypercorn": ["hypercorn", "-b", "fd://{fd}", "tests.gateway.hostile_service:asgi_app"],
    "daphne": ["daphne", "--fd", "{fd}", "tests.gateway.hostile_service:asgi_app"],
    "gunicorn": ["gunicorn", "--threads", "16", "-b", "fd://{fd}", "tests.gateway.hostile_service:wsgi_app"],
}
TRACEPARENT = SAMPLED.encode()
REQUEST_ID = re.compile(r"[0-9a-f]{32}")
LOG_LINE = re.compile(r"[0-9a-f]{32} \[[A-Za-z0-9._~:+=/@-]{0,128}\] served")

MANY = 60
HOSTILE: dict[str, bytes] = {
    # too long
    "long_request_id": b"X-Request-ID: " + b"a" * 7000,
    "long_hex_request_id": b"X-Request-ID: " + b"a" * 4096,
    "long_traceparent": b"traceparent: " + TRACEPARENT + b"-" + b"0" * 7000,
    "long_future_traceparent": b"traceparent: 01" + TRACEPARENT[2:] + b"-" + b"x" * 7000,
    "long_tracestate": b"traceparent: " + TRACEPARENT + b"\r\ntracestate: " + b"a=" + b"b" * 7000,
    "long_tracestate_of_many": b"traceparent: "
    + TRACEPARENT
    + b"\r\ntracestate: "
    + b",".join(b"k%d=v" % i for i in range(900)),
    "long_baggage_member": b"baggage: tenant_id=" + b"a" * 7000,
    "long_baggage_of_many": b"baggage: " + b",".join(b"k%d=v" % i for i in range(900)),
    "long_tag": b"X-Tenant-Id: " + b"a" * 7000,
    "long_b3": b"b3: " + b"a" * 7000,
    "long_user_agent": b"User-Agent: " + b"a" * 7000,
    "long_name": b"x-" + b"a" * 7000 + b": 1",
    "longer_than_servers_take": b"baggage: a=" + b"a" * 300_000,
    # more than one
    "two_traceparents": (b"traceparent: " + TRACEPARENT + b"\r\n") * 2 + b"X-Ok: 1",
    "two_request_ids": b"X-Request-ID: " + b"a" * 32 + b"\r\nX-Request-ID: " + b"b" * 32,
    "two_tags": b"X-Tenant-Id: a\r\nX-Tenant-Id: b",
    "many_baggage_lines": b"\r\n".join(b"baggage: k%d=%s" % (i, b"v" * 1000) for i in range(MANY)),
    "many_tracestate_lines": b"traceparent: "
    + TRACEPARENT
    + b"\r\n"
    + b"\r\n".join(b"tracestate: k%d=%s" % (i, b"v" * 200) for i in range(MANY)),
    "the_same_key_many_times": b"baggage: " + b",".join([b"k=" + b"v" * 20] * 300),
    "every_format_at_once": b"b3: 1-1-1\r\nX-B3-TraceId: zz\r\nuber-trace-id: ::::\r\nX-Amzn-Trace-Id: Root=1-;=;\r\n"
    b"x-datadog-trace-id: 99999999999999999999999\r\not-tracer-traceid: -1\r\ngrpc-trace-bin: AAAA",
    "thousands_of_headers": b"\r\n".join(b"x-h%d: 1" % i for i in range(5000)),
    # bytes
    "bytes_in_request_id": b"X-Request-ID: " + bytes(range(0x80, 0x100)),
    "bytes_in_traceparent": b"traceparent: " + bytes(range(0xA0, 0xE0)),
    "bytes_in_baggage": b"baggage: tenant_id=\xff\xfe, k\xff=1, ok=%ff%fe",
    "bytes_in_tag": b"X-Tenant-Id: caf\xc3\xa9",
    "nul": b"X-Request-ID: a\x00b",
    "escape": b"X-Tenant-Id: \x1b[31mred",
    # somebody else's lines
    "folded": b"X-Request-ID: a\r\n X-Evil: 1",
    "bare_carriage_return": b"X-Request-ID: a\rX-Evil: 1",
    "bare_line_feed": b"X-Request-ID: a\nX-Evil: 1",
    "percent_coded_in_request_id": b"X-Request-ID: a%0d%0aX-Evil:%201",
    "percent_coded_in_baggage": b"baggage: tenant_id=a%0d%0aX-Evil:%201,other=b%0d%0aX-Evil:%201",
    "percent_coded_in_tag": b"X-Tenant-Id: a%0d%0aX-Evil: 1",
    "script_in_request_id": b"X-Request-ID: <script>alert(1)</script>",
    "script_in_baggage": b"baggage: tenant_id=<script>alert(1)</script>",
    "script_in_tag": b"X-Tenant-Id: <script>alert(1)</script>",
    "format_in_request_id": b"X-Request-ID: %(message)s{0}${jndi:ldap://x}",
    "format_in_tag": b"X-Tenant-Id: %(message)s",
    "space_before_the_colon": b"X-Request-ID : " + b"a" * 32,
    "underscores": b"X_Request_Id: <script>\r\nX_Tenant_Id: <script>",
    "no_colon": b"X-Request-ID",
    "empty": b"X-Request-ID:\r\ntraceparent:\r\nbaggage:\r\ntracestate:\r\nX-Tenant-Id:",
}


class Running:
    """A server in a process of its own."""

    def __init__(self, listening: socket.socket, log: Path) -> None:
        self.port = listening.getsockname()[1]
        self.log = log

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, lines: bytes = b"X-Ok: 1", target: bytes = b"/") -> Response | None:
        """The answer; None when the server has hung up on us."""
        with self.connect() as connection:
            received = b""
            try:
                connection.sendall(
                    b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + lines + b"\r\n\r\n"
                )
                while chunk := connection.recv(65536):
                    received += chunk
            except ConnectionError:
                pass  # it has answered, and closed, before it had read all
        return response_of(received) if received else None

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(scope="module", params=[(name, trusted) for name in SERVERS for trusted in ("1", "0")], ids=str)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    name, trusted = request.param
    pytest.importorskip(name)
    log = tmp_path_factory.mktemp("hostile") / "log"
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        command = [part.format(fd=listening.fileno()) for part in SERVERS[name]]
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "HOSTILE_LOG": str(log), "HOSTILE_TRUSTED": trusted},
            pass_fds=[listening.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            running = Running(listening, log)
            assert running.ask() is not None
            yield running
        finally:
            process.terminate()
            process.wait(60)


def assert_harmless(response: Response | None) -> None:
    """What every answer owes, be it the service's or the server's own refusal."""
    if response is None:
        return
    assert response.status in (200, 400, 414, 431)
    assert "x-evil" not in response.headers
    for name, value in response.headers.items():
        assert len(name) + len(value) < 200
        assert "<" not in value
        assert value.isprintable()
    if response.status == 200:
        assert REQUEST_ID.fullmatch(response.headers["x-request-id"])
        told = json.loads(response.body)
        assert told["longest"] <= 1024
        sent = told["sent"]
        assert len(sent.get("traceparent", "")) in (0, 55)
        assert len(sent.get("tracestate", "")) <= 8192
        assert len(sent.get("baggage", "")) <= 8192
        assert len(sent.get("x-tenant-id", "")) <= 128
        for name, value in sent.items():
            assert re.fullmatch(r"[\x20-\x7e]*", value), name


@pytest.mark.parametrize("lines", HOSTILE.values(), ids=HOSTILE)
def test_the_service_answers_and_reflects_nothing(server: Running, lines: bytes) -> None:
    logged = len(server.lines())
    assert_harmless(server.ask(lines))
    after = server.ask()
    assert after is not None
    assert after.status == 200
    assert_harmless(after)
    assert all(LOG_LINE.fullmatch(line) for line in server.lines()[logged:])


@pytest.mark.parametrize(
    "target",
    [
        b"/%0d%0aX-Evil:%201",
        b"/<script>",
        b"/" + b"a" * 3000,
        b"/%ff%fe",
        b"/%00",
        b"/../../etc/passwd",
        b"*",
        b"/?" + b"a" * 3000,
    ],
)
def test_paths_are_no_way_in(server: Running, target: bytes) -> None:
    logged = len(server.lines())
    assert_harmless(server.ask(target=target))
    assert_harmless(server.ask())
    assert all(LOG_LINE.fullmatch(line) for line in server.lines()[logged:])


def test_what_is_sent_on_does_not_grow_from_hop_to_hop(server: Running) -> None:
    lines = b"\r\n".join(
        [
            b"traceparent: " + TRACEPARENT,
            *(b"tracestate: k%d=v" % i for i in range(30)),
            *(b"baggage: k%d=%s" % (i, b"%20<\\" * 20) for i in range(30)),
            b"X-Tenant-Id: a",
        ]
    )
    sizes = []
    for _ in range(6):
        response = server.ask(lines)
        assert response is not None
        assert_harmless(response)
        sent = json.loads(response.body)["sent"]
        sizes.append(sum(len(name) + len(value) for name, value in sent.items()))
        lines = b"\r\n".join(f"{name}: {value}".encode() for name, value in sent.items())
    assert sizes[1:] == sizes[:1] * 5


def test_slow_senders_keep_nobody_waiting(server: Running) -> None:
    slow = [server.connect() for _ in range(12)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Request-ID: ")
        for _ in range(5):
            for connection in slow:
                connection.sendall(b"a")
            response = server.ask()
            assert response is not None
            assert response.status == 200
            time.sleep(0.05)
    finally:
        for connection in slow:
            connection.close()
    assert_harmless(server.ask())


def test_who_leaves_in_the_middle_of_a_header_leaves_nothing(server: Running) -> None:
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\ntraceparent: 00-4bf92f")
    assert_harmless(server.ask())
