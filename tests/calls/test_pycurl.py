from __future__ import annotations

import io
from typing import Any

import pycurl
import pytest

import tracefill
from tests.calls.client_contract import ClientContract, Server, clients, only_client, server, traceparent_of, tracer

__all__ = ["server"]


def handle(url: str, headers: list[str] | None = None) -> Any:
    curl = pycurl.Curl()
    curl.setopt(curl.URL, url)
    curl.setopt(curl.WRITEDATA, io.BytesIO())
    curl.setopt(curl.TIMEOUT, 30)
    if headers is not None:
        curl.setopt(curl.HTTPHEADER, headers)
    return curl


class TestPycurl(ClientContract):
    name = "pycurl"
    follows_redirects = False

    def owners(self) -> list[Any]:
        return [pycurl.Curl, pycurl.CurlMulti]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        curl = handle(url, [f"{name}: {value}" for name, value in headers.items()] if headers else None)
        try:
            curl.perform()
            return int(curl.getinfo(curl.RESPONSE_CODE))
        finally:
            curl.close()

    def test_handle_that_is_used_again_sends_a_position_of_its_own_each_time(self, server: Server, spans: Any) -> None:
        given = ["X-Own: 1", "X-Own: 2", "X-Empty;"]
        curl = handle(server.url, given)
        for name in "ab":
            with tracer.start_as_current_span(name):
                curl.perform()
        assert given == ["X-Own: 1", "X-Own: 2", "X-Empty;"]
        assert [server.headers("traceparent", i) for i in (0, 1)] == [[traceparent_of(s)] for s in clients(spans)]
        assert server.headers("x-own") == ["1", "2"]
        assert server.headers("x-empty") == [""]
        tracefill.uninstall()
        curl.perform()
        assert server.headers("traceparent") == []
        assert server.headers("x-own") == ["1", "2"]

    @pytest.mark.parametrize(
        ("tell", "method"),
        [
            (lambda c: c.setopt(c.POSTFIELDS, "a=b"), "POST"),
            (lambda c: c.setopt(c.NOBODY, True), "HEAD"),
            (lambda c: c.setopt(c.CUSTOMREQUEST, "PUT"), "PUT"),
            (lambda c: (c.setopt(c.POSTFIELDS, "a=b"), c.setopt(c.HTTPGET, 1)), "GET"),
        ],
    )
    def test_method_is_the_one_that_is_sent(self, tell: Any, method: str, server: Server, spans: Any) -> None:
        curl = handle(server.url)
        tell(curl)
        curl.perform()
        assert server.received[-1][0] == method
        assert only_client(spans).name == method

    @pytest.mark.parametrize("name", ["perform_rs", "perform_rb"])
    def test_other_ways_to_perform(self, name: str, server: Server, spans: Any) -> None:
        curl = pycurl.Curl()
        curl.setopt(curl.URL, server.url)
        assert "path" in str(getattr(curl, name)())
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]

    def test_handles_of_a_multi(self, server: Server, spans: Any) -> None:
        multi = pycurl.CurlMulti()
        handles = [handle(f"{server.url}/{name}") for name in "ab"]
        with tracer.start_as_current_span("near") as near:
            for curl in handles:
                multi.add_handle(curl)
        running = 2
        while running:
            _, running = multi.perform()
            multi.select(1.0)
        for curl in handles:
            multi.remove_handle(curl)
        assert {span.parent.span_id for span in clients(spans)} == {near.get_span_context().span_id}
        assert [span.attributes["http.response.status_code"] for span in clients(spans)] == [200, 200]
        sent = {server.headers("traceparent", i)[0] for i in (0, 1)}
        assert sent == {traceparent_of(span) for span in clients(spans)}

    def test_copies_and_resets(self, server: Server, spans: Any) -> None:
        curl = handle(server.url, ["X-Own: 1"])
        copied = curl.duphandle()
        copied.perform()
        assert server.headers("x-own") == ["1"]
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]
        curl.reset()
        curl.setopt(curl.URL, server.url)
        curl.setopt(curl.WRITEDATA, io.BytesIO())
        curl.perform()
        assert server.headers("x-own") == []
        assert len(server.headers("traceparent")) == 1

    def test_handle_made_before_install_keeps_its_headers(self, server: Server) -> None:
        tracefill.uninstall()
        curl = handle(server.url, ["X-Own: 1"])
        tracefill.install(only=["pycurl"])
        curl.perform()
        assert server.headers("x-own") == ["1"]
