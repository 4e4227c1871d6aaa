"""The gateway of a WSGI application, behind wsgiref."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import SpanKind

import tracefill
from tests.calls.running import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, ask, wsgi
from tracefill.calls.wsgi import Middleware
from tracefill.edge import request_ids
from tracefill.gateway.wsgi import Gateway

UUID = "6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e"
UUID_HEX = UUID.replace("-", "")

Headers = dict[str, str]


class Service:
    """An application that remembers what it saw of each request."""

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.injected: Headers = {}
        self.request_id: str | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environ = environ
        self.request_id = request_ids.current()
        self.injected = {}
        tracefill.inject(self.injected)
        start_response("200 OK", [("X-Own", "kept")])
        return [b"done"]


@pytest.fixture
def service() -> Service:
    return Service()


def server_spans(spans: Any) -> list[Any]:
    return [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]


def ask_once(app: Any, headers: Headers) -> Headers:
    with wsgi(app) as port:
        response = ask(port, "/orders/1", headers)
    assert response.status == 200
    return response.headers


def test_both_ids_are_made_and_are_one(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {})
    (span,) = server_spans(spans)
    request_id = f"{span.context.trace_id:032x}"
    assert span.parent is None
    assert service.environ["HTTP_X_REQUEST_ID"] == answer["x-request-id"] == service.request_id == request_id
    assert service.environ["HTTP_TRACEPARENT"] == f"00-{request_id}-{span.context.span_id:016x}-01"
    assert answer["x-own"] == "kept"


def test_a_valid_request_id_names_the_trace(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {"X-Request-ID": UUID})
    (span,) = server_spans(spans)
    assert f"{span.context.trace_id:032x}" == UUID_HEX == answer["x-request-id"]
    assert span.parent is None


def test_a_valid_traceparent_wins(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {"traceparent": SAMPLED, "X-Request-ID": "order-4711"})
    (span,) = server_spans(spans)
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert service.environ["HTTP_X_REQUEST_ID"] == answer["x-request-id"] == TRACE_ID
    assert span.attributes["http.request.header.x-request-id"] == ("order-4711",)


def test_an_older_format_is_written_as_traceparent(service: Service, spans: Any) -> None:
    ask_once(Gateway(Middleware(service)), {"b3": f"{TRACE_ID}-{SPAN_ID}-1"})
    assert service.environ["HTTP_TRACEPARENT"] == SAMPLED


def test_a_stranger_gets_a_trace_of_his_own(service: Service, spans: Any) -> None:
    sent = {"traceparent": SAMPLED, "X-B3-TraceId": TRACE_ID, "baggage": "tenant_id=1", "ot-baggage-x": "1"}
    ask_once(Gateway(Middleware(service), trusted=False), sent | {"X-Request-ID": UUID})
    (span,) = server_spans(spans)
    assert span.parent is None
    assert [link.context.trace_id for link in span.links] == [int(TRACE_ID, 16)]
    assert span.attributes["http.request.header.x-request-id"] == (UUID,)
    left = {"HTTP_X_B3_TRACEID", "HTTP_BAGGAGE", "HTTP_OT_BAGGAGE_X", "HTTP_TRACESTATE"}
    assert left.isdisjoint(service.environ)


def test_without_a_server_span_within_the_ids_are_there_all_the_same(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(service), {"X-Request-ID": UUID})
    assert answer["x-request-id"] == service.request_id == UUID_HEX
    assert service.injected == {"traceparent": service.environ["HTTP_TRACEPARENT"]}
    assert server_spans(spans) == []


def test_unsampled_traffic_has_its_request_id(service: Service, spans: Any) -> None:
    answer = ask_once(Gateway(Middleware(service)), {"traceparent": UNSAMPLED})
    assert server_spans(spans) == []
    assert answer["x-request-id"] == service.request_id == TRACE_ID


def test_the_callers_environ_is_not_changed() -> None:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_REQUEST_ID": UUID}
    before = dict(environ)
    list(Gateway(Middleware(Service()))(environ, lambda *_: None))
    assert environ == before


def test_an_answer_that_names_a_request_id_itself_is_kept(spans: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-REQUEST-ID", "mine")])
        return []

    assert ask_once(Gateway(app), {})["x-request-id"] == "mine"


class TestFlaskUnderContrib:
    @pytest.fixture
    def app(self) -> Any:
        flask = pytest.importorskip("flask")
        contrib = pytest.importorskip("opentelemetry.instrumentation.flask")
        app = flask.Flask("shop")
        contrib.FlaskInstrumentor.instrument_app(app)

        @app.get("/orders/<order_no>")
        def show(order_no: str) -> Any:
            return flask.Response(part for part in [str(request_ids.current())])

        return app

    def test_contribs_server_span_is_the_only_one(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(app), {"X-Request-ID": UUID})
        (span,) = server_spans(spans)
        assert span.instrumentation_scope.name == "opentelemetry.instrumentation.flask"
        assert f"{span.context.trace_id:032x}" == UUID_HEX
        assert span.parent is None
        assert span.attributes["request_id"] == UUID_HEX

    def test_a_stranger_is_linked(self, app: Any, spans: Any) -> None:
        ask_once(Gateway(app, trusted=False), {"traceparent": SAMPLED})
        (span,) = server_spans(spans)
        assert [link.context.trace_id for link in span.links] == [int(TRACE_ID, 16)]

    def test_it_continues_its_caller_whether_installed_or_not(self, app: Any, spans: Any) -> None:
        served = Gateway(Middleware(app))
        ask_once(served, {"traceparent": SAMPLED})
        tracefill.install()
        try:
            ask_once(served, {"traceparent": SAMPLED})
        finally:
            tracefill.uninstall()
        assert [f"{span.parent.span_id:016x}" for span in server_spans(spans)] == [SPAN_ID, SPAN_ID]
