from __future__ import annotations

import contextlib
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp.web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest, Request
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

from tests.calls.running import aiohttp_web
from tests.calls.server_contract import HEADERS, ServerContract, only_server, position


async def order(request: Any) -> Any:
    return aiohttp.web.Response(text=position(), headers=dict(HEADERS))


async def status(request: Any) -> Any:
    return aiohttp.web.Response(status=int(request.match_info["code"]))


async def raise_status(request: Any) -> Any:
    raise aiohttp.web.HTTPNotFound if request.match_info["code"] == "404" else aiohttp.web.HTTPServiceUnavailable


async def fail(request: Any) -> Any:
    raise KeyError("order")


async def stream(request: Any) -> Any:
    async def body() -> Any:
        for _ in range(3):
            yield position().encode()

    return aiohttp.web.Response(body=body())


class TestAiohttpWeb(ServerContract):
    name = "aiohttp_web"
    scope = "tracefill.calls.aiohttp_web"
    library = "AIOHTTP_SERVER"
    contrib = AioHttpServerInstrumentor
    contrib_scope = "opentelemetry.instrumentation.aiohttp_server"

    def owners(self) -> list[Any]:
        return [RequestHandler, BaseRequest, Request]

    def app(self) -> Any:
        app = aiohttp.web.Application()
        app.router.add_get("/orders/{order_no}", order)
        app.router.add_get("/status/{code}", status)
        app.router.add_get("/raised/{code}", raise_status)
        app.router.add_get("/fail", fail)
        app.router.add_get("/stream", stream)
        return app

    def serving(self, app: Any) -> contextlib.AbstractContextManager[int]:
        return aiohttp_web(app)

    @pytest.mark.parametrize(("code", "status"), [(404, "UNSET"), (503, "ERROR")])
    def test_a_status_that_is_raised_is_an_answer(self, code: int, status: str, wire: Any, spans: Any) -> None:
        assert self.ask(wire(), f"/raised/{code}").status == code
        span = only_server(spans)
        assert (span.status.status_code.name, span.events) == (status, ())
        assert span.attributes["http.response.status_code"] == code

    def test_a_route_of_a_sub_application_is_the_whole(self, wire: Any, spans: Any) -> None:
        wire()
        app = aiohttp.web.Application()
        app.add_subapp("/shop", self.app())
        assert self.ask(app, "/shop/orders/1").status == 200
        assert only_server(spans).name == "GET /shop/orders/{order_no}"
