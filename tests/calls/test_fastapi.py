from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

import fastapi
from fastapi.responses import PlainTextResponse, StreamingResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import tracefill
from tests.calls.running import SAMPLED, TRACE_ID, UNSAMPLED, asgi, ask
from tests.calls.server_contract import HEADERS, FrameworkContract, only_server, position, servers, work
from tests.contracts import ancestors, finished
from tracefill.calls.fastapi import Middleware


def app_with(**settings: Any) -> Any:
    app = fastapi.FastAPI(**settings)

    @app.get("/orders/{order_no}")
    def order(order_no: str) -> Any:
        return PlainTextResponse(position(), headers=dict(HEADERS))

    @app.get("/status/{code}")
    async def status(code: int) -> Any:
        return fastapi.Response(status_code=code)

    @app.get("/fail")
    async def fail() -> Any:
        raise KeyError("order")

    @app.get("/stream")
    async def stream() -> Any:
        return StreamingResponse(position() for _ in range(3))

    @app.get("/after")
    async def after(tasks: fastapi.BackgroundTasks) -> Any:
        async def later() -> None:
            await asyncio.sleep(0.01)
            work()

        tasks.add_task(later)
        return "done"

    return app


class TestFastAPI(FrameworkContract):
    """Whose own telemetry is off, or not there yet."""

    name = "fastapi"
    scope = "tracefill.calls.asgi"
    library = "FASTAPI"
    contrib = FastAPIInstrumentor
    contrib_scope = "opentelemetry.instrumentation.fastapi"
    works_after = True
    middleware = Middleware

    def owners(self) -> list[Any]:
        return [next(kind for kind in fastapi.FastAPI.__mro__ if kind.__module__ == "fastapi.applications")]

    def app(self) -> Any:
        return app_with(telemetry={"tracing": False})

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with asgi(app) as port:
            yield port


class TestItsOwnTelemetry:
    """Since version 0.160 FastAPI makes a SERVER span, and spans within it; see also tests/gateway/test_asgi.py."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> Iterator[None]:
        tracefill.install()
        yield
        tracefill.uninstall()

    def ask(self, app: Any, path: str, traceparent: str = SAMPLED) -> Any:
        with asgi(app) as port:
            return ask(port, path, {"traceparent": traceparent})

    def test_its_span_is_the_only_one_and_lasts_until_background_tasks_are_done(self, spans: Any) -> None:
        self.ask(app_with(), "/after")
        span, far = only_server(spans), finished(spans, "far")
        assert (span.instrumentation_scope.name, span.name) == ("fastapi", "GET /after")
        assert ancestors(spans, far)[-1] == "GET /after"
        assert far.end_time <= span.end_time

    def test_an_excluded_url_has_no_span_and_keeps_its_caller(
        self, spans: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "orders/secret")
        app = app_with()
        assert self.ask(app, "/orders/secret").body == SAMPLED.encode()
        assert servers(spans) == []
        self.ask(app, "/orders/1")
        assert only_server(spans).instrumentation_scope.name == "fastapi"

    @pytest.mark.parametrize("settings", [{"excluded_urls": "orders/secret"}, {}])
    def test_within_our_middleware_it_keeps_quiet(self, settings: Any, spans: Any) -> None:
        assert self.ask(Middleware(app_with(), **settings), "/orders/secret").status == 200
        assert [span.instrumentation_scope.name for span in spans.get_finished_spans()] == (
            [] if settings else ["tracefill.calls.asgi"]
        )

    def test_an_unsampled_caller_stays_unsampled(self, spans: Any) -> None:
        assert self.ask(app_with(), "/orders/1", UNSAMPLED).body.startswith(f"00-{TRACE_ID}-".encode())
        assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("made_first", [True, False])
def test_lifespan_runs_once_under_install(made_first: bool) -> None:
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> Any:
        seen.append("up")
        yield
        seen.append("down")

    if made_first:
        app = fastapi.FastAPI(lifespan=lifespan)
    tracefill.install()
    try:
        if not made_first:
            app = fastapi.FastAPI(lifespan=lifespan)
        with asgi(app, lifespan="on"):
            assert seen == ["up"]
    finally:
        tracefill.uninstall()
    assert seen == ["up", "down"]
