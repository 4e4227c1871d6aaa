from __future__ import annotations

from typing import Any

import pytest
import urllib3
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from urllib3 import PoolManager
from urllib3.connectionpool import HTTPConnectionPool

from tests.calls.client_contract import ClientContract, Server, clients, server, tracer

__all__ = ["server"]

pool_made_before = PoolManager()


class TestUrllib3(ClientContract):
    name = "urllib3"
    contrib = URLLib3Instrumentor
    wraps_errors = True

    def owners(self) -> list[Any]:
        return [HTTPConnectionPool]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        with PoolManager(retries=urllib3.Retry(connect=0, read=0, redirect=5)) as pool:
            return pool.request("GET", url, headers=headers, timeout=30).status

    def test_what_was_there_before_install_is_traced(self, server: Server, spans: Any) -> None:
        pool_made_before.request("GET", server.url)
        urllib3.request("GET", server.url)
        assert len(clients(spans)) == 2

    def test_each_retry_is_a_span_beside_the_first(self, server: Server, spans: Any) -> None:
        retries = urllib3.Retry(status=2, status_forcelist=[503], raise_on_status=False)
        with tracer.start_as_current_span("near") as near:
            assert pool_made_before.request("GET", server.url + "/status/503", retries=retries).status == 503
        assert [span.attributes.get("http.request.resend_count") for span in clients(spans)] == [None, 1, 2]
        assert {span.parent.span_id for span in clients(spans)} == {near.get_span_context().span_id}
        assert len({server.headers("traceparent", i)[0] for i in range(3)}) == 3

    def test_headers_of_the_pool_are_not_changed(self, server: Server) -> None:
        with PoolManager(headers={"X-Own": "1"}) as pool:
            pool.request("GET", server.url)
            assert dict(pool.headers) == {"X-Own": "1"}
        assert server.headers("x-own") == ["1"]
        assert len(server.headers("traceparent")) == 1

    def test_headers_given_as_a_multi_mapping_are_all_sent(self, server: Server) -> None:
        headers = urllib3.HTTPHeaderDict()
        headers.add("X-Own", "1")
        headers.add("X-Own", "2")
        pool_made_before.request("GET", server.url, headers=headers)
        assert ", ".join(server.headers("x-own")) == "1, 2"
        assert "traceparent" not in headers

    @pytest.mark.parametrize("preload", [True, False])
    def test_answer_read_later_is_read_in_the_context_of_its_reader(
        self, preload: bool, server: Server, spans: Any
    ) -> None:
        response = pool_made_before.request("GET", server.url, preload_content=preload)
        assert len(clients(spans)) == 1
        assert b"path" in response.data
