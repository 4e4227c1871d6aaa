from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")

import starlette.applications
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from starlette.background import BackgroundTask
from starlette.middleware import Middleware as Entry
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

import tracefill
from tests.calls.running import asgi
from tests.calls.server_contract import HEADERS, FrameworkContract, only_server, position, work
from tracefill.calls.starlette import Middleware


async def order(request: Any) -> Response:
    return PlainTextResponse(position(), headers=dict(HEADERS))


async def status(request: Any) -> Response:
    return Response(status_code=request.path_params["code"])


def fail(request: Any) -> Response:
    raise KeyError("order")


async def stream(request: Any) -> Response:
    async def body() -> Any:
        for _ in range(3):
            yield position()

    return StreamingResponse(body())


async def after(request: Any) -> Response:
    async def later() -> None:
        await asyncio.sleep(0.01)
        work()

    return PlainTextResponse("done", background=BackgroundTask(later))


ROUTES = [
    Route("/orders/{order_no}", order),
    Route("/status/{code:int}", status),
    Route("/fail", fail),
    Route("/stream", stream),
    Route("/after", after),
]


class TestStarlette(FrameworkContract):
    name = "starlette"
    scope = "tracefill.calls.asgi"
    library = "STARLETTE"
    contrib = StarletteInstrumentor
    contrib_scope = "opentelemetry.instrumentation.starlette"
    works_after = True
    middleware = Middleware

    def owners(self) -> list[Any]:
        return [starlette.applications.Starlette.__mro__[-2], OpenTelemetryMiddleware]

    def app(self) -> Any:
        return starlette.applications.Starlette(routes=ROUTES)

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with asgi(app) as port:
            yield port

    def test_a_middleware_in_the_applications_own_stack_makes_the_span(self, spans: Any) -> None:
        app = starlette.applications.Starlette(routes=ROUTES, middleware=[Entry(Middleware)])
        for switch_on in (lambda: None, tracefill.install):
            spans.clear()
            switch_on()
            self.ask(app, "/orders/1")
            assert only_server(spans).name == "GET /orders/{order_no}"

    def test_the_route_of_a_mounted_application_is_the_whole(self, wire: Any, spans: Any) -> None:
        wire()
        app = starlette.applications.Starlette(routes=[Mount("/shop", starlette.applications.Starlette(routes=ROUTES))])
        self.ask(app, "/shop/orders/1")
        assert only_server(spans).name == "GET /shop/orders/{order_no}"

    @pytest.mark.parametrize("installed", [False, True])
    def test_starlettes_own_middleware_keeps_quiet_within_ours(self, installed: bool, spans: Any) -> None:
        app = starlette.applications.Starlette(routes=ROUTES, middleware=[Entry(OpenTelemetryMiddleware)])
        if installed:
            tracefill.install()
        self.ask(Middleware(app), "/orders/1")
        assert only_server(spans).instrumentation_scope.name == "tracefill.calls.asgi"
