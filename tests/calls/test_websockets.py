from __future__ import annotations

import asyncio
from typing import Any

import websockets.asyncio.client
import websockets.asyncio.connection
import websockets.asyncio.server
import websockets.legacy.client
import websockets.legacy.protocol
import websockets.protocol
import websockets.sync.client
import websockets.sync.server
import wsproto.connection
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF  # noqa: F401
from opentelemetry.trace import StatusCode
from websockets.asyncio.client import connect as connect_async  # imported before install(), as programs do
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.calls.client_contract import ClientContract, Server, only_client, server

__all__ = ["server"]

ONE = f"00-{1:032x}-{1:016x}-01"


class TestClient(ClientContract):
    """`server` speaks HTTP only: a handshake that is answered, if not with 101."""

    name = "websockets"

    def owners(self) -> list[Any]:
        return [
            websockets.protocol.Protocol,
            websockets.sync.client.ClientConnection,
            websockets.sync.client.reconnect,
            websockets.asyncio.client.ClientConnection,
            websockets.asyncio.client.connect,
            websockets.sync.server.ServerConnection,
            websockets.asyncio.server.ServerConnection,
            websockets.legacy.protocol.WebSocketCommonProtocol,
            websockets.legacy.client.WebSocketClientProtocol,
            wsproto.connection.Connection,
            asyncio,
        ]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        try:
            connect(url.replace("http:", "ws:"), additional_headers=headers, proxy=None)
        except InvalidStatus as error:
            return error.response.status_code
        raise AssertionError("accepted by a server that cannot")

    def test_span_says_what_was_asked_and_answered(self, server: Server, spans: Any) -> None:
        self.get(server.url + "/orders?page=2&sig=secret")
        span = only_client(spans)
        assert span.name == "GET"
        assert span.status.status_code is StatusCode.UNSET
        assert dict(span.attributes) == {
            "http.request.method": "GET",
            "url.full": server.url.replace("http:", "ws:") + "/orders?page=2&sig=REDACTED",
            "server.address": "127.0.0.1",
            "server.port": server.server_address[1],
            "http.response.status_code": 200,
            "network.protocol.version": "1.1",
        }


class TestClientOfAsyncio(TestClient):
    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        async def main() -> int:
            try:
                await connect_async(url.replace("http:", "ws:"), additional_headers=headers, proxy=None)
            except InvalidStatus as error:
                return error.response.status_code
            raise AssertionError("accepted by a server that cannot")

        return asyncio.run(main())
