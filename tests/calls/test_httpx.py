from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import SpanKind, StatusCode

import tracefill
from tests.calls.client_contract import ClientContract, Server, clients, only_client, server, traceparent_of, tracer

__all__ = ["server"]

client_made_before = httpx.Client()


class TestHttpx(ClientContract):
    name = "httpx"
    contrib = HTTPXClientInstrumentor

    def owners(self) -> list[Any]:
        return [httpx.Client, httpx.AsyncClient]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        return httpx.get(url, headers=headers, timeout=30, follow_redirects=True, trust_env=False).status_code

    def test_what_was_there_before_install_is_traced(self, server: Server, spans: Any) -> None:
        client_made_before.get(server.url)
        assert len(clients(spans)) == 1

    def test_request_sent_twice_is_sent_two_positions_and_not_changed(self, server: Server, spans: Any) -> None:
        request = httpx.Request("POST", server.url, content=b"body")
        for name in "ab":
            with tracer.start_as_current_span(name):
                assert client_made_before.send(request).json()["body"] == "body"
        assert "traceparent" not in request.headers
        assert [server.headers("traceparent", i) for i in (0, 1)] == [[traceparent_of(s)] for s in clients(spans)]

    def test_calls_of_an_application_that_is_asked_in_process_are_on_the_chain(
        self, server: Server, spans: Any
    ) -> None:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            httpx.get(server.url, trust_env=False)
            start_response("200 OK", [])
            return [environ["HTTP_TRACEPARENT"].encode()]

        with tracer.start_as_current_span("near"):
            answer = httpx.Client(transport=httpx.WSGITransport(app)).get("http://app/")
        inner, outer = clients(spans)
        assert answer.text == traceparent_of(outer)
        assert inner.parent.span_id == outer.context.span_id
        assert server.headers("traceparent") == [traceparent_of(inner)]

    def test_transports_that_contrib_does_not_know_are_traced_beside_it(self, spans: Any) -> None:
        seen = []

        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers["traceparent"])
            return httpx.Response(200)

        instrumentor = HTTPXClientInstrumentor()
        instrumentor.instrument()
        try:
            httpx.Client(transport=httpx.MockTransport(handle)).get("http://shop/")
        finally:
            instrumentor.uninstrument()
        assert seen == [traceparent_of(only_client(spans))]

    def test_client_that_contrib_was_given_is_left_to_it(self, server: Server, spans: Any) -> None:
        with httpx.Client() as client:
            HTTPXClientInstrumentor.instrument_client(client)
            client.get(server.url)
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]


class TestHttpxAsync(TestHttpx):
    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        async def main() -> int:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(url, headers=headers, timeout=30, follow_redirects=True)).status_code

        return asyncio.run(main())

    def test_requests_side_by_side_do_not_see_each_other(self, server: Server, spans: Any) -> None:
        async def one(client: httpx.AsyncClient, name: str) -> None:
            with tracer.start_as_current_span(name):
                await client.get(f"{server.url}/{name}")

        async def main() -> None:
            async with httpx.AsyncClient(trust_env=False) as client:
                await asyncio.gather(*(one(client, name) for name in "abc"))

        asyncio.run(main())
        above = {span.context.span_id: span.name for span in spans.get_finished_spans()}
        for span in clients(spans):
            assert span.attributes["url.full"].endswith("/" + above[span.parent.span_id])

    def test_cancelled_request_is_no_error(self, server: Server, spans: Any) -> None:
        async def handle(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(60)
            return httpx.Response(200)

        async def main() -> None:
            async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
                task = asyncio.create_task(client.get("http://shop/"))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not otel_context.get_current()

        asyncio.run(main())
        assert only_client(spans).status.status_code is StatusCode.UNSET
        assert tracefill.installed() == ["httpx"]
        assert only_client(spans).kind is SpanKind.CLIENT
