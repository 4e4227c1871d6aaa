from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ClientRequest, ClientResponse
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor

import tracefill
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


class TestAiohttpClient(ClientContract):
    name = "aiohttp_client"
    contrib = AioHttpClientInstrumentor

    def owners(self) -> list[Any]:
        return [aiohttp.ClientSession, ClientRequest, ClientResponse]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        async def main() -> int:
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
                await response.read()
                return response.status

        return asyncio.run(main())

    @pytest.mark.parametrize("with_contrib", [False, True])
    def test_session_that_exists_already_is_traced(self, with_contrib: bool, server: Server, spans: Any) -> None:
        async def main() -> None:
            tracefill.uninstall()
            async with aiohttp.ClientSession() as session:
                if with_contrib:
                    AioHttpClientInstrumentor().instrument()
                tracefill.install(only=["aiohttp_client"])
                async with session.get(server.url) as response:
                    await response.read()

        try:
            asyncio.run(main())
        finally:
            if with_contrib:
                AioHttpClientInstrumentor().uninstrument()
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]

    def test_requests_side_by_side_do_not_see_each_other(self, server: Server, spans: Any) -> None:
        async def one(session: aiohttp.ClientSession, name: str) -> None:
            with tracer.start_as_current_span(name) as near:
                async with session.get(f"{server.url}/{name}"):
                    assert trace.get_current_span() is near

        async def main() -> None:
            async with aiohttp.ClientSession() as session:
                await asyncio.gather(*(one(session, name) for name in "abc"))

        asyncio.run(main())
        above = {span.context.span_id: span.name for span in spans.get_finished_spans()}
        for span in clients(spans):
            assert span.attributes["url.full"].endswith("/" + above[span.parent.span_id])

    def test_status_that_raises_is_an_error_once(self, server: Server, spans: Any) -> None:
        async def main() -> None:
            async with aiohttp.ClientSession(raise_for_status=True) as session:
                with pytest.raises(aiohttp.ClientResponseError):
                    await session.get(server.url + "/status/404")

        asyncio.run(main())
        assert only_client(spans).attributes["error.type"] == "404"
        assert only_client(spans).events == ()

    def test_body_that_makes_requests_of_its_own(self, server: Server, spans: Any) -> None:
        async def main() -> None:
            async with aiohttp.ClientSession() as session:

                async def body() -> AsyncIterator[bytes]:
                    async with session.get(server.url + "/part"):
                        yield b"x"

                async with session.post(server.url + "/whole", data=body(), headers={"Content-Length": "1"}):
                    pass

        asyncio.run(main())
        sent = {path: value for _, path, headers in server.received for key, value in headers if key == "traceparent"}
        assert set(sent.values()) == {traceparent_of(span) for span in clients(spans)}
        assert len(clients(spans)) == 2
