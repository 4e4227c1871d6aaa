"""What every HTTP server owes. A server's test says how it serves these:

| path | what the handler does |
|---|---|
| /orders/{order_no} | answers with its position, and with the headers X-Answer: yes and Set-Cookie: a=b |
| /status/{code} | answers with this status |
| /fail | raises KeyError |
| /stream | answers with its position, three times, as it goes |
| /after | answers, and works for a while afterwards: a span "far" |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

import tracefill
from tests.calls.running import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, Response, ask, here, wait_for
from tests.contracts import PatchContract, finished, tracer

HEADERS = [("X-Answer", "yes"), ("Set-Cookie", "a=b")]

CAPTURE = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_"


def position() -> str:
    """The traceparent of the current span."""
    return here()["traceparent"]


def work() -> None:
    tracer.start_span("far").end()


def servers(spans: Any) -> list[Any]:
    """The SERVER spans that have ended."""
    return [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]


def only_server(spans: Any) -> Any:
    wait_for(lambda: servers(spans))
    found = servers(spans)
    assert len(found) == 1, [f"{span.name} of {span.instrumentation_scope.name}" for span in found]
    return found[0]


def traceparent_of(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{int(span.context.trace_flags) & 1:02x}"


class ServerContract(PatchContract):
    """One request, one SERVER span below its caller."""

    #: Our tracer of this server.
    scope: str
    #: The templates of /orders/{order_no} and /fail; None where the server knows no routes.
    route: str | None = "/orders/{order_no}"
    fail_route: str | None = "/fail"
    #: The library's name in OTEL_PYTHON_<LIBRARY>_EXCLUDED_URLS.
    library: str
    #: Contrib's instrumentor of this server, and the scope of its spans.
    contrib: Any = None
    contrib_scope = ""
    #: Whether a handler can go on after the response.
    works_after = False

    def app(self) -> Any:
        """A new application of the handlers above."""
        raise NotImplementedError

    def serving(self, app: Any) -> contextlib.AbstractContextManager[int]:
        """Serves it on this port."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _off(self) -> Iterator[None]:
        yield
        tracefill.uninstall()

    @pytest.fixture(params=["integration", "all, application first"])
    def wire(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        """Makes an application that is traced, by one of the ways to do it."""

        def wired() -> Any:
            if request.param == "integration":
                tracefill.install(only=[self.name])
                return self.app()
            app = self.app()
            tracefill.install()
            return app

        return wired

    def ask(self, app: Any, path: str, traceparent: str | None = SAMPLED, **headers: str) -> Response:
        with self.serving(app) as port:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return ask(port, path, sent | ({"traceparent": traceparent} if traceparent else {}))

    def test_a_request_is_one_span_below_its_caller_named_after_its_route(
        self, wire: Any, spans: Any, no_log: Any
    ) -> None:
        response = self.ask(wire(), "/orders/4711?page=2&sig=secret", User_Agent="me")
        span = only_server(spans)
        assert response.status == 200
        assert traceparent_of(span) in response.body.decode()
        assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE_ID}-{SPAN_ID}"
        assert span.instrumentation_scope.name == self.scope
        assert span.name == (f"GET {self.route}" if self.route else "GET")
        assert span.attributes.get("http.route") == self.route
        assert span.status.status_code is StatusCode.UNSET
        assert {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": "/orders/4711",
            "url.query": "page=2&sig=REDACTED",
            "server.address": "127.0.0.1",
            "user_agent.original": "me",
            "network.protocol.version": "1.1",
        }.items() <= dict(span.attributes).items()

    def test_a_request_without_a_caller_begins_a_trace(self, wire: Any, spans: Any) -> None:
        with self.serving(wire()) as port, tracer.start_as_current_span("of the client"):
            for _ in range(2):
                ask(port, "/orders/1")
        wait_for(lambda: len(servers(spans)) == 2)
        assert [span.parent for span in servers(spans)] == [None, None]
        assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 3

    @pytest.mark.parametrize("code", [200, 404, 503])
    def test_an_answer_is_an_error_when_the_server_is_to_blame(self, code: int, wire: Any, spans: Any) -> None:
        assert self.ask(wire(), f"/status/{code}").status == code
        span = only_server(spans)
        assert span.attributes["http.response.status_code"] == code
        assert span.status.status_code is (StatusCode.ERROR if code == 503 else StatusCode.UNSET)
        assert span.attributes.get("error.type") == ("503" if code == 503 else None)
        assert span.events == ()

    def test_an_unknown_path_has_no_route(self, wire: Any, spans: Any) -> None:
        if self.route is None:
            pytest.skip("no routes")
        assert self.ask(wire(), "/nowhere/4711").status == 404
        span = only_server(spans)
        assert (span.name, span.attributes.get("http.route")) == ("GET", None)

    def test_an_exception_is_on_the_span_and_the_servers_own_business(self, wire: Any, spans: Any) -> None:
        self.ask_for_failure(wire())
        span = only_server(spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "KeyError"
        assert [event.attributes["exception.type"] for event in span.events] == ["KeyError"]
        if self.fail_route:
            assert (span.name, span.attributes["http.response.status_code"]) == (f"GET {self.fail_route}", 500)

    def ask_for_failure(self, app: Any) -> None:
        assert self.ask(app, "/fail").status == 500

    def test_a_body_is_streamed_inside_of_the_span(self, wire: Any, spans: Any) -> None:
        response = self.ask(wire(), "/stream")
        assert response.body.decode().count(traceparent_of(only_server(spans))) == 3

    def test_what_is_done_after_the_response_is_inside_of_the_span(self, wire: Any, spans: Any) -> None:
        if not self.works_after:
            pytest.skip("nothing comes after the response")
        self.ask(wire(), "/after")
        span, far = only_server(spans), finished(spans, "far")
        assert far.parent.span_id == span.context.span_id
        assert far.end_time <= span.end_time

    def test_an_unsampled_caller_costs_no_span(self, wire: Any, spans: Any) -> None:
        for path in ("/orders/1", "/stream"):
            assert UNSAMPLED.encode() in self.ask(wire(), path, UNSAMPLED).body
            tracefill.uninstall()
        assert servers(spans) == []

    @pytest.mark.parametrize("variable", ["OTEL_PYTHON_EXCLUDED_URLS", "OTEL_PYTHON_{}_EXCLUDED_URLS"])
    def test_an_excluded_url_has_no_span_and_keeps_its_caller(
        self, variable: str, wire: Any, spans: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable.format(self.library), "orders/secret,/health")
        with self.serving(wire()) as port:
            assert SAMPLED.encode() in ask(port, "/orders/secret", {"traceparent": SAMPLED}).body
            assert servers(spans) == []
            ask(port, "/orders/1")
        only_server(spans)

    def test_headers_are_captured_and_secrets_are_not(
        self, wire: Any, spans: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(CAPTURE + "SERVER_REQUEST", "x-tenant,authorization,x-pin")
        monkeypatch.setenv(CAPTURE + "SERVER_RESPONSE", "x-answer,set-cookie")
        monkeypatch.setenv(CAPTURE + "SANITIZE_FIELDS", "x-pin")
        self.ask(wire(), "/orders/1", X_Tenant="a", Authorization="Basic 123", X_Pin="4711", X_Other="b")
        attributes = dict(only_server(spans).attributes)
        assert {name: value for name, value in attributes.items() if ".header." in name} == {
            "http.request.header.x-tenant": ("a",),
            "http.request.header.authorization": ("[REDACTED]",),
            "http.request.header.x-pin": ("[REDACTED]",),
            "http.response.header.x-answer": ("yes",),
            "http.response.header.set-cookie": ("[REDACTED]",),
        }

    def test_the_answer_says_who_the_request_was(self, wire: Any) -> None:
        with self.serving(wire()) as port:
            for sent, said in (({}, TRACE_ID), ({"X-Request-ID": "mine"}, "mine")):
                headers = ask(port, "/orders/1", {"traceparent": SAMPLED, **sent}).headers
                assert headers["x-request-id"] == said

    @pytest.mark.parametrize("contrib_first", [False, True])
    @pytest.mark.parametrize("path", ["/orders/1", "/stream"])
    def test_with_contrib_the_span_is_contribs(self, contrib_first: bool, path: str, spans: Any, no_log: Any) -> None:
        if self.contrib is None:
            pytest.skip("contrib has no instrumentation of it")
        instrumentor = self.contrib()
        switches = [tracefill.install, instrumentor.instrument]
        for switch in reversed(switches) if contrib_first else switches:
            switch()
        try:
            body = self.ask(self.app(), path).body
        finally:
            instrumentor.uninstrument()
        span = only_server(spans)
        assert span.instrumentation_scope.name == self.contrib_scope
        assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE_ID}-{SPAN_ID}"
        assert traceparent_of(span).encode() in body

    def test_after_uninstall_an_application_is_what_it_was(self, wire: Any, spans: Any) -> None:
        app = wire()
        tracefill.uninstall()
        response = self.ask(app, "/orders/1")
        assert f"00-{0:032x}-{0:016x}-00" in response.body.decode()
        assert "x-request-id" not in response.headers
        assert servers(spans) == []


class FrameworkContract(ServerContract):
    """The same for what has a middleware: `Middleware(app)` does it without install()."""

    middleware: Any
    #: Whether the middleware finds the route by itself, and sees the exceptions that the framework answers for.
    shows_route = True
    shows_failures = True

    @pytest.mark.parametrize("path", ["/orders/1", "/stream"])
    def test_a_middleware_makes_the_span_without_install(self, path: str, spans: Any, no_log: Any) -> None:
        body = self.ask(self.middleware(self.app()), path).body
        span = only_server(spans)
        assert span.instrumentation_scope.name == self.scope
        assert traceparent_of(span).encode() in body
        if path != "/stream" and self.shows_route:
            assert (span.name, span.attributes["http.route"]) == (f"GET {self.route}", self.route)

    def test_a_middleware_sees_an_exception_without_install(self, spans: Any) -> None:
        self.ask_for_failure(self.middleware(self.app()))
        span = only_server(spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["http.response.status_code"] == 500
        if self.shows_failures:
            assert span.attributes["error.type"] == "KeyError"

    def test_a_middleware_keeps_its_settings_under_install(self, spans: Any) -> None:
        def asked(span: Any, _: Any) -> None:
            span.set_attribute("asked", True)

        def answered(span: Any, *_: Any) -> None:
            span.set_attribute("answered", True)

        app = self.middleware(self.app(), request_hook=asked, response_hook=answered, excluded_urls="/status/")
        tracefill.install()
        self.ask(app, "/orders/1")
        span = only_server(spans)
        assert (span.attributes["asked"], span.attributes["answered"]) == (True, True)
        assert self.ask(app, "/status/204").status == 204
        assert len(servers(spans)) == 1

    @pytest.mark.parametrize("installed", [False, True])
    @pytest.mark.parametrize("path", ["/orders/1", "/stream"])
    def test_a_middleware_around_contribs_leaves_it_the_span(
        self, path: str, installed: bool, spans: Any, no_log: Any
    ) -> None:
        instrumentor = self.contrib()
        instrumentor.instrument()
        try:
            app = self.middleware(self.app())
            if installed:
                tracefill.install()
            body = self.ask(app, path).body
        finally:
            instrumentor.uninstrument()
        span = only_server(spans)
        assert span.instrumentation_scope.name == self.contrib_scope
        assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE_ID}-{SPAN_ID}"
        # Without install() contrib's span is left as it is: what streams after its end is not its.
        assert traceparent_of(span).encode() in body or (path == "/stream" and not installed)
