from __future__ import annotations

import gc
import http.client
import urllib.parse
import xmlrpc.client
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.trace import StatusCode

from tests.calls.client_contract import (
    ClientContract,
    Server,
    clients,
    only_client,
    server,
    traceparent_of,
    tracer,
)

__all__ = ["server"]


class TestHttpClient(ClientContract):
    name = "http_client"
    follows_redirects = False

    def owners(self) -> list[Any]:
        return [http.client.HTTPConnection]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
        try:
            connection.request("GET", url[len(f"{parts.scheme}://{parts.netloc}") :], headers=headers or {})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def connection(self, server: Server) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[misc]

    def test_one_connection_many_requests(self, server: Server, spans: Any) -> None:
        connection = self.connection(server)
        for name in "abc":
            with tracer.start_as_current_span(name):
                connection.request("POST", "/" + name, body=b"12")
                connection.getresponse().read()
        connection.close()
        assert [server.headers("traceparent", i) for i in range(3)] == [[traceparent_of(s)] for s in clients(spans)]

    def test_request_written_line_by_line(self, server: Server, spans: Any) -> None:
        connection = self.connection(server)
        connection.putrequest("POST", "/orders")
        connection.putheader(b"Content-Length", 2)
        connection.putheader("X-Own", "1", "2")
        connection.endheaders()
        connection.send(b"ab")
        assert connection.getresponse().status == 200
        connection.close()
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]
        assert server.headers("content-length") == ["2"]

    def test_headers_that_the_caller_injected_himself_are_replaced(self, server: Server, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            connection = self.connection(server)
            connection.request("GET", "/", headers=headers)
            connection.getresponse().read()
            connection.close()
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]

    def test_header_after_the_last_is_refused_as_ever(self, server: Server) -> None:
        connection = self.connection(server)
        connection.request("GET", "/")
        with pytest.raises(http.client.CannotSendHeader):
            connection.putheader("traceparent", "x")
        connection.close()

    def test_answer_that_nobody_reads_ends_the_span(self, server: Server, spans: Any) -> None:
        connection = self.connection(server)
        connection.request("GET", "/")
        connection.close()
        assert only_client(spans).status.status_code is StatusCode.UNSET
        connection = self.connection(server)
        connection.request("GET", "/")
        del connection
        gc.collect()
        assert len(clients(spans)) == 2

    def test_span_is_not_current_between_request_and_answer(self, server: Server) -> None:
        connection = self.connection(server)
        with tracer.start_as_current_span("near") as near:
            connection.request("GET", "/")
            assert trace.get_current_span() is near
            connection.getresponse().read()
        connection.close()

    def test_xmlrpc_rides_on_it(self, server: Server, spans: Any) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011  (the server speaks no XML)
            xmlrpc.client.ServerProxy(server.url).add(1, 2)
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]
