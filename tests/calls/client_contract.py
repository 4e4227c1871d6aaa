"""What every HTTP client owes, and the server that tells what it was sent. A client's test says how it sends a request."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

import tracefill
from tests.contracts import PatchContract, finished
from tracefill._codec import REQUEST_ID_KEY

tracer = trace.get_tracer("tests")

Headers = list[tuple[str, str]]


class Server(http.server.ThreadingHTTPServer):
    """Remembers the headers of every request. `/status/503` answers so, `/redirect/2` leads two times on, `/drop` closes."""

    daemon_threads = True

    def __init__(self) -> None:
        self.received: list[tuple[str, str, Headers]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass  # a client that has gone is what some tests are about

    def headers(self, name: str, request: int = -1) -> list[str]:
        """All values that a request (default: the last) had for this name."""
        return [value for key, value in self.received[request][2] if key.lower() == name.lower()]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append((self.command, self.path, list(self.headers.items())))
        _, kind, *rest = [*self.path.partition("?")[0].split("/"), ""]
        if kind == "drop":
            self.close_connection = True
            return
        if kind == "redirect":
            left = int(rest[0])
            self.send_response(302)
            self.send_header("Location", f"/redirect/{left - 1}" if left > 1 else "/end")
            answer = b""
        else:
            self.send_response(int(rest[0]) if kind == "status" else 200)
            answer = json.dumps({"path": self.path, "body": body.decode("latin-1")}).encode()
        self.send_header("X-Answer", "yes")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_HEAD = do_PUT = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def clients(spans: Any) -> list[Any]:
    """The finished CLIENT spans, in the order in which they ended."""
    return [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]


def only_client(spans: Any) -> Any:
    found = clients(spans)
    assert len(found) == 1, [f"{span.name} of {span.instrumentation_scope.name}" for span in found]
    return found[0]


def traceparent_of(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{int(span.context.trace_flags):02x}"


def dead_url() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/"


class ClientContract(PatchContract):
    """One request, one CLIENT span, one header."""

    #: Contrib's instrumentor of this library, if there is one.
    contrib: Any = None
    #: Whether the library follows redirects by itself, and whether each of them can be seen.
    follows_redirects = True
    #: Whether the library raises for a status that says no.
    raises_for_status = False

    @pytest.fixture(autouse=True)
    def _on(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if request.function.__name__ not in vars(PatchContract):
            tracefill.install(only=[self.name])
        yield
        tracefill.uninstall()

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        """Sends GET, reads the answer and returns its status; a failure to connect raises."""
        raise NotImplementedError

    def test_server_is_sent_the_position_of_the_client_span(self, server: Server, spans: Any, no_log: Any) -> None:
        with tracer.start_as_current_span("near") as near:
            assert self.get(server.url + "/orders") == 200
        span = only_client(spans)
        assert span.parent.span_id == near.get_span_context().span_id
        assert server.headers("traceparent") == [traceparent_of(span)]

    def test_span_says_what_was_asked_and_answered(self, server: Server, spans: Any) -> None:
        self.get(server.url + "/orders?page=2&sig=secret")
        span = only_client(spans)
        assert span.name == "GET"
        assert span.status.status_code is StatusCode.UNSET
        assert {
            "http.request.method": "GET",
            "url.full": server.url + "/orders?page=2&sig=REDACTED",
            "server.address": "127.0.0.1",
            "server.port": server.server_address[1],
            "http.response.status_code": 200,
        }.items() <= dict(span.attributes).items()
        assert "http.request.resend_count" not in span.attributes

    def test_answer_of_an_error_is_an_error(self, server: Server, spans: Any) -> None:
        if self.raises_for_status:
            with pytest.raises(Exception, match="503"):
                self.get(server.url + "/status/503")
        else:
            assert self.get(server.url + "/status/503") == 503
        span = only_client(spans)
        assert span.attributes["http.response.status_code"] == 503
        assert span.attributes["error.type"] == "503"
        assert span.status.status_code is StatusCode.ERROR

    def test_failure_to_connect_goes_through_and_is_on_the_span(self, spans: Any, no_log: Any) -> None:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            self.get(dead_url())
        span = only_client(spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"].endswith(type(raised.value).__qualname__) or self.wraps_errors
        assert not otel_context.get_current()

    #: The span's error.type is that of an inner library's exception.
    wraps_errors = False

    def test_answer_that_never_comes_is_an_error(self, server: Server, spans: Any) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011
            self.get(server.url + "/drop")
        assert {span.status.status_code for span in clients(spans)} == {StatusCode.ERROR}

    def test_each_redirect_is_a_span_beside_the_first(self, server: Server, spans: Any) -> None:
        if not self.follows_redirects:
            pytest.skip("the library follows none")
        with tracer.start_as_current_span("near") as near:
            assert self.get(server.url + "/redirect/2") == 200
        found = clients(spans)
        assert [span.attributes["http.response.status_code"] for span in found] == [302, 302, 200]
        assert [span.attributes.get("http.request.resend_count") for span in found] == [None, 1, 2]
        assert {span.parent.span_id for span in found} == {near.get_span_context().span_id}
        assert [server.headers("traceparent", i) for i in range(3)] == [[traceparent_of(span)] for span in found]

    def test_context_is_untouched(self, server: Server) -> None:
        with tracer.start_as_current_span("near") as near:
            before = otel_context.get_current()
            self.get(server.url + "/redirect/1")
            assert otel_context.get_current() is before
            assert trace.get_current_span() is near
        assert not otel_context.get_current()

    def test_request_outside_of_any_trace_begins_one(self, server: Server, spans: Any) -> None:
        for _ in range(2):
            self.get(server.url + "/orders")
        first, second = clients(spans)
        assert first.parent is None
        assert second.parent is None
        assert first.context.trace_id != second.context.trace_id

    def test_unsampled_request_has_no_span_and_says_so(self, server: Server, spans: Any) -> None:
        parent = SpanContext(0xA, 0xB, False, TraceFlags(0))
        token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(parent)))
        try:
            assert self.get(server.url + "/orders") == 200
        finally:
            otel_context.detach(token)
        assert clients(spans) == []
        assert server.headers("traceparent") == [f"00-{0xA:032x}-{0xB:016x}-00"]

    @pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
    def test_suppressed_request_is_left_alone(self, suppress: Any, server: Server, spans: Any) -> None:
        with tracer.start_as_current_span("near"), suppress():
            self.get(server.url + "/orders")
        assert clients(spans) == []
        assert server.headers("traceparent") == []

    def test_header_of_the_caller_is_replaced_and_his_dict_is_not_changed(self, server: Server, spans: Any) -> None:
        headers = {"Traceparent": f"00-{1:032x}-{1:016x}-01", "X-Own": "kept"}
        before = dict(headers)
        with tracer.start_as_current_span("near"):
            self.get(server.url + "/orders", headers)
        assert headers == before
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]
        assert server.headers("x-own") == ["kept"]

    def test_baggage_goes_along(self, server: Server) -> None:
        token = otel_context.attach(baggage.set_baggage("tenant", "a b"))
        try:
            self.get(server.url + "/orders")
        finally:
            otel_context.detach(token)
        assert server.headers("baggage") == ["tenant=a%20b"]

    def test_request_id_goes_forward_unless_the_caller_has_set_one(self, server: Server) -> None:
        token = otel_context.attach(otel_context.set_value(REQUEST_ID_KEY, "r-1"))
        try:
            self.get(server.url + "/orders")
            assert server.headers("x-request-id") == ["r-1"]
            self.get(server.url + "/orders", {"x-request-ID": "mine"})
            assert server.headers("x-request-id") == ["mine"]
        finally:
            otel_context.detach(token)
        self.get(server.url + "/orders")
        assert server.headers("x-request-id") == []

    @pytest.mark.parametrize("contrib_first", [False, True])
    def test_with_contrib_there_is_one_span_and_one_header(
        self, contrib_first: bool, server: Server, spans: Any, no_log: Any
    ) -> None:
        if self.contrib is None:
            pytest.skip("contrib has no instrumentation of it")
        instrumentor = self.contrib()
        if contrib_first:
            tracefill.uninstall()
        instrumentor.instrument()
        try:
            if contrib_first:
                tracefill.install(only=[self.name])
            with tracer.start_as_current_span("near") as near:
                assert self.get(server.url + "/orders") == 200
        finally:
            instrumentor.uninstrument()
        span = only_client(spans)
        assert span.instrumentation_scope.name.startswith("opentelemetry.instrumentation.")
        assert span.parent.span_id == near.get_span_context().span_id
        assert server.headers("traceparent") == [traceparent_of(span)]

    def test_everything_installed_there_is_still_one_span(self, server: Server, spans: Any) -> None:
        tracefill.install()
        with tracer.start_as_current_span("near") as near:
            self.get(server.url + "/orders")
        span = only_client(spans)
        assert span.instrumentation_scope.name == f"tracefill.calls.{self.name}"
        assert span.parent.span_id == near.get_span_context().span_id
        assert server.headers("traceparent") == [traceparent_of(span)]

    def test_after_uninstall_nothing_is_sent(self, server: Server, spans: Any) -> None:
        tracefill.uninstall()
        with tracer.start_as_current_span("near") as near:
            self.get(server.url + "/orders")
        assert finished(spans, "near").context.span_id == near.get_span_context().span_id
        assert clients(spans) == []
        assert server.headers("traceparent") == []
