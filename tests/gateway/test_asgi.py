"""The gateway of an ASGI application, behind uvicorn."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind

import tracefill
from tests.calls.running import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, asgi, ask, wait_for
from tracefill.calls.asgi import Middleware
from tracefill.edge import request_ids
from tracefill.gateway.asgi import Gateway

UUID = "6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e"
UUID_HEX = UUID.replace("-", "")

Headers = dict[str, str]


class Service:
    """An application that remembers what it saw of each request."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[str, str]]] = []
        self.injected: list[Headers] = []
        self.request_ids: list[str | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.headers.append([(name.decode(), value.decode()) for name, value in scope["headers"]])
        self.request_ids.append(request_ids.current())
        out: Headers = {}
        tracefill.inject(out)
        self.injected.append(out)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"kept")]})
        await send({"type": "http.response.body", "body": b"done"})

    def saw(self, name: str) -> str:
        """The one line of this header in the last request."""
        values = [value for key, value in self.headers[-1] if key == name]
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


@pytest.fixture
def service() -> Service:
    return Service()


def server_spans(spans: Any) -> list[Any]:
    return [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]


def ask_once(app: Any, headers: Headers) -> Headers:
    with asgi(app) as port:
        response = ask(port, "/orders/1", headers)
    assert response.status == 200
    return response.headers


def test_both_ids_are_made_and_are_one(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {})
    request_id = service.saw("x-request-id")
    (span,) = server_spans(spans)
    assert len(request_id) == 32
    assert request_id == request_id.lower()
    assert request_id == f"{span.context.trace_id:032x}"
    assert answer["x-request-id"] == request_id
    assert answer["x-own"] == "kept"
    assert "traceresponse" not in answer
    assert span.attributes["request_id"] == request_id
    assert service.request_ids == [request_id]


def test_a_new_trace_has_a_root_and_the_header_names_it(service: Service, spans: Any) -> None:
    ask_once(Gateway(Middleware(service)), {})
    (span,) = server_spans(spans)
    assert span.parent is None
    assert service.saw("traceparent") == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert service.injected[-1]["traceparent"] == service.saw("traceparent")


@pytest.mark.parametrize("sent", [UUID, UUID_HEX, UUID.upper()])
def test_a_valid_request_id_names_the_trace(service: Service, spans: Any, sent: str) -> None:
    answer = ask_once(Gateway(Middleware(service)), {"X-Request-ID": sent})
    (span,) = server_spans(spans)
    assert f"{span.context.trace_id:032x}" == UUID_HEX
    assert span.parent is None
    assert service.saw("x-request-id") == answer["x-request-id"] == UUID_HEX
    assert "http.request.header.x-request-id" not in span.attributes


def test_a_valid_traceparent_wins(service: Service, spans: Any) -> None:
    before = request_ids.counts()["disagreeing"]
    answer = ask_once(Gateway(Middleware(service)), {"traceparent": SAMPLED, "X-Request-ID": UUID})
    (span,) = server_spans(spans)
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert service.saw("x-request-id") == answer["x-request-id"] == TRACE_ID
    assert service.saw("traceparent") == SAMPLED
    assert span.attributes["http.request.header.x-request-id"] == (UUID,)
    assert request_ids.counts()["disagreeing"] == before + 1


@pytest.mark.parametrize(
    "headers",
    [
        {"b3": f"{TRACE_ID}-{SPAN_ID}-1"},
        {"X-B3-TraceId": TRACE_ID, "X-B3-SpanId": SPAN_ID, "X-B3-Sampled": "1"},
        {"uber-trace-id": f"{TRACE_ID}:{SPAN_ID}:0:1"},
    ],
)
def test_other_formats_are_written_as_traceparent(service: Service, spans: Any, headers: Headers) -> None:
    ask_once(Gateway(Middleware(service)), headers)
    (span,) = server_spans(spans)
    assert service.saw("traceparent") == SAMPLED
    assert f"{span.parent.span_id:016x}" == SPAN_ID


@pytest.mark.parametrize(
    "sent", ["order-4711", "0" * 32, UUID_HEX + "0", "g" * 32, "x" * 200, "<script>", "a b", "{}".format("é" * 8)]
)
def test_a_bad_request_id_is_replaced_and_counted(service: Service, spans: Any, sent: str) -> None:
    before = request_ids.counts()["bad"]
    answer = ask_once(Gateway(Middleware(service)), {"X-Request-ID": sent})
    (span,) = server_spans(spans)
    assert answer["x-request-id"] == f"{span.context.trace_id:032x}" != "0" * 32
    assert request_ids.counts()["bad"] == before + 1


def test_a_missing_request_id_is_counted(service: Service) -> None:
    before = request_ids.counts()["missing"]
    ask_once(Gateway(Middleware(service)), {"traceparent": SAMPLED})
    assert request_ids.counts()["missing"] == before + 1


def test_the_counts_are_a_metric() -> None:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    Gateway(Service())
    request_ids.count("bad")
    data: Any = reader.get_metrics_data()
    (metric,) = [
        metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "tracefill.gateway.request_ids"
    ]
    found = {point.attributes["tracefill.request_id.state"]: point.value for point in metric.data.data_points}
    assert found == request_ids.counts()


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({}, "missing"),
        ({"X-Request-ID": "<script>"}, "bad"),
        ({"X-Request-ID": UUID, "traceparent": SAMPLED}, "disagreeing"),
        ({"X-Request-ID": TRACE_ID, "traceparent": SAMPLED}, None),
        ({"X-Request-ID": UUID}, None),
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_request_ids_are_counted_whoever_sends_them(
    service: Service, headers: dict[str, str], state: str | None, trusted: bool
) -> None:
    before = request_ids.counts()
    ask_once(Gateway(Middleware(service), trusted=trusted), headers)
    after = request_ids.counts()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == (
        {state: 1} if state else {}
    )


@pytest.mark.parametrize("trusted", [False, lambda scope: False, lambda scope: 1 / 0])
def test_a_stranger_gets_a_trace_of_his_own(service: Service, spans: Any, trusted: Any) -> None:
    sent = {"traceparent": SAMPLED, "b3": f"{TRACE_ID}-{SPAN_ID}-1", "baggage": "tenant_id=1", "uberctx-x": "1"}
    answer = ask_once(Gateway(Middleware(service), trusted=trusted), sent | {"X-Request-ID": UUID})
    (span,) = server_spans(spans)
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" not in (TRACE_ID, UUID_HEX)
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [
        (int(TRACE_ID, 16), int(SPAN_ID, 16))
    ]
    assert span.attributes["http.request.header.x-request-id"] == (UUID,)
    assert answer["x-request-id"] == service.saw("x-request-id") == f"{span.context.trace_id:032x}"
    assert {name for name, _ in service.headers[-1]}.isdisjoint({"b3", "baggage", "uberctx-x", "tracestate"})
    assert TRACE_ID not in service.saw("traceparent")


def test_a_caller_is_trusted_by_what_the_function_says_of_his_scope(service: Service, spans: Any) -> None:
    seen = []

    def from_here(scope: Any) -> bool:
        seen.append(scope["client"][0])
        return True

    ask_once(Gateway(Middleware(service), trusted=from_here), {"traceparent": SAMPLED})
    assert seen == ["127.0.0.1"]
    assert f"{server_spans(spans)[0].context.trace_id:032x}" == TRACE_ID


def test_without_a_server_span_within_the_ids_are_there_all_the_same(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(service), {"X-Request-ID": UUID})
    assert service.saw("x-request-id") == answer["x-request-id"] == UUID_HEX
    assert service.saw("traceparent").startswith(f"00-{UUID_HEX}-")
    assert service.injected == [{"traceparent": service.saw("traceparent")}]
    assert server_spans(spans) == []


def test_unsampled_traffic_has_its_request_id(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {"traceparent": UNSAMPLED})
    assert server_spans(spans) == []
    assert answer["x-request-id"] == service.saw("x-request-id") == TRACE_ID
    assert service.injected == [{"traceparent": UNSAMPLED}]


def test_requests_do_not_see_each_other(service: Service, spans: Any) -> None:
    with asgi(Gateway(Middleware(service))) as port:
        for _ in range(3):
            ask(port)
    assert len(set(service.request_ids)) == 3
    assert len({span.context.trace_id for span in server_spans(spans)}) == 3
    assert request_ids.current() is None


def test_lifespan_and_unknown_scopes_pass_through() -> None:
    import asyncio

    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    asyncio.run(Gateway(Middleware(app))(scope, None, None))  # type: ignore[arg-type]
    assert seen == [scope]


class TestFastAPI:
    """FastAPI makes its own server span, of the headers only."""

    @pytest.fixture
    def app(self) -> Any:
        fastapi = pytest.importorskip("fastapi")
        app = fastapi.FastAPI()

        @app.get("/orders/{order_no}")
        async def show(order_no: str) -> Any:
            out: Headers = {}
            tracefill.inject(out)
            return {
                "request_id": request_ids.current(),
                "current": trace.get_current_span().get_span_context().trace_id,
            }

        return app

    def test_its_own_server_span_is_the_only_one(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(app), {"X-Request-ID": UUID})
        (span,) = server_spans(spans)
        assert span.instrumentation_scope.name == "fastapi"
        assert f"{span.context.trace_id:032x}" == UUID_HEX
        assert span.parent is None
        assert span.attributes["request_id"] == UUID_HEX

    def test_an_older_format_reaches_it(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(app), {"b3": f"{TRACE_ID}-{SPAN_ID}-1"})
        (span,) = server_spans(spans)
        assert f"{span.parent.span_id:016x}" == SPAN_ID

    def test_the_handler_knows_the_request_id(self, app: Any) -> None:
        with asgi(Gateway(app)) as port:
            body = ask(port, "/orders/1", {"X-Request-ID": UUID}).body
        assert UUID_HEX.encode() in body

    def test_a_stranger_is_linked(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(app, trusted=False), {"traceparent": SAMPLED})
        (span,) = server_spans(spans)
        assert [link.context.trace_id for link in span.links] == [int(TRACE_ID, 16)]

    def test_a_middleware_of_ours_makes_it_keep_quiet(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(Middleware(app)), {"traceparent": SAMPLED})
        (span,) = server_spans(spans)
        assert span.instrumentation_scope.name == "tracefill.calls.asgi"
        assert span.name == "GET /orders/{order_no}"

    def test_install_adds_no_span(self, app: Any, spans: Any) -> None:
        tracefill.install(only=["fastapi", "starlette", "uvicorn"])
        try:
            ask_once(Gateway(app), {"traceparent": SAMPLED})
        finally:
            tracefill.uninstall()
        (span,) = server_spans(spans)
        assert span.instrumentation_scope.name == "fastapi"


def test_install_gives_a_plain_application_behind_a_gateway_its_span(service: Service, spans: Any) -> None:
    tracefill.install(only=["uvicorn"])
    try:
        answer = ask_once(Gateway(service), {})
    finally:
        tracefill.uninstall()
    (span,) = server_spans(spans)
    assert answer["x-request-id"] == f"{span.context.trace_id:032x}"
    assert span.parent is None


def test_websockets_are_requests_too(spans: Any) -> None:
    sync_client = pytest.importorskip("websockets.sync.client")
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(request_ids.current())
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    with asgi(Gateway(Middleware(app))) as port:
        with sync_client.connect(f"ws://127.0.0.1:{port}/", additional_headers={"X-Request-ID": UUID}) as client:
            assert client.response.headers["x-request-id"] == UUID_HEX
        wait_for(lambda: server_spans(spans))
    assert seen == [UUID_HEX]
