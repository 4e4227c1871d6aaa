from __future__ import annotations

import contextlib
import http.client
import http.server
import sys
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

import tracefill
from tests.calls.running import SAMPLED, SPAN_ID, ask, in_thread, send
from tests.calls.server_contract import HEADERS, ServerContract, only_server, position, servers, traceparent_of


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        deed, _, rest = self.path[1:].partition("/")
        if deed == "fail":
            raise KeyError("order")
        self.send_response(int(rest) if deed == "status" else 200)
        for name, value in HEADERS if deed == "orders" else ():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(3 if deed == "stream" else deed == "orders"):
            self.wfile.write(position().encode())

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.failures: list[BaseException | None] = []

    def handle_error(self, *_: Any) -> None:
        self.failures.append(sys.exc_info()[1])


class TestHTTPServer(ServerContract):
    name = "http_server"
    scope = "tracefill.calls.http_server"
    library = "HTTP"
    route = None
    fail_route = None

    def owners(self) -> list[Any]:
        return [http.server.BaseHTTPRequestHandler]

    def app(self) -> Any:
        return type("Handler", (Handler,), {})

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with Server(("127.0.0.1", 0), app) as server, in_thread(server.serve_forever, server.shutdown):
            self.failures = server.failures
            yield server.server_port

    def ask_for_failure(self, app: Any) -> None:
        with pytest.raises(IndexError):  # no answer at all
            self.ask(app, "/fail")
        assert [type(error) for error in self.failures] == [KeyError]

    def test_each_request_of_a_connection_has_its_own_span(self, wire: Any, spans: Any) -> None:
        class Kept(Handler):
            def do_GET(self) -> None:
                body = position().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        wire()
        with self.serving(Kept) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            bodies = []
            for _ in range(2):
                connection.request("GET", "/orders/1", headers={"traceparent": SAMPLED})
                bodies.append(connection.getresponse().read().decode())
            connection.close()
        assert bodies == [traceparent_of(span) for span in servers(spans)]
        assert len(set(bodies)) == 2

    def test_a_request_that_can_not_be_read_is_none(self, wire: Any, spans: Any) -> None:
        with self.serving(wire()) as port:
            assert send(port, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n").status == 431
            assert ask(port, "/orders/1").status == 200
        assert len(servers(spans)) == 1
        assert servers(spans)[0].attributes["http.response.status_code"] == 200


class TestXMLRPC:
    """Which is served by http.server."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> Iterator[None]:
        tracefill.install(only=["http_server"])
        yield
        tracefill.uninstall()

    @pytest.fixture
    def url(self) -> Iterator[str]:
        def fail() -> None:
            raise KeyError("order")

        with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
            server.register_function(position)
            server.register_function(fail)
            with in_thread(server.serve_forever, server.shutdown):
                yield f"http://127.0.0.1:{server.server_address[1]}"

    def test_a_call_is_one_span_below_its_caller(self, url: str, spans: Any) -> None:
        with xmlrpc.client.ServerProxy(url, headers=[("traceparent", SAMPLED)]) as proxy:
            answer = proxy.position()
        span = only_server(spans)
        assert answer == traceparent_of(span)
        assert (span.name, f"{span.parent.span_id:016x}") == ("POST", SPAN_ID)
        assert span.attributes["url.path"] == "/RPC2"

    def test_a_fault_is_an_answer(self, url: str, spans: Any) -> None:
        with xmlrpc.client.ServerProxy(url) as proxy, pytest.raises(xmlrpc.client.Fault, match="KeyError"):
            proxy.fail()
        assert only_server(spans).status.status_code is StatusCode.UNSET
