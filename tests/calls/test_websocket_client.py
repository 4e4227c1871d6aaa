from __future__ import annotations

import threading
from typing import Any

import pytest
import websocket
import websocket._core
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import StatusCode

import tracefill
from tests.calls.client_contract import ClientContract, Server, only_client, server, traceparent_of, tracer
from tests.calls.running import in_thread, wait_for
from tests.calls.test_websockets import of_threads, position

__all__ = ["server"]


class TestWebsocketClient(ClientContract):
    """`server` speaks HTTP only: a handshake that is answered, if not with 101."""

    name = "websocket_client"
    follows_redirects = False  # it does, and nobody sees them

    def owners(self) -> list[Any]:
        return [websocket._core.WebSocket]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        try:
            websocket.create_connection(url.replace("http:", "ws:"), header=headers)
        except websocket.WebSocketBadStatusException as error:
            return error.status_code
        raise AssertionError("accepted by a server that cannot")

    def test_span_says_what_was_asked_and_answered(self, server: Server, spans: Any) -> None:
        self.get(server.url + "/orders?page=2&sig=secret")
        span = only_client(spans)
        assert span.name == "GET"
        assert span.status.status_code is StatusCode.UNSET
        assert {
            "url.full": server.url.replace("http:", "ws:") + "/orders?page=2&sig=REDACTED",
            "server.port": server.server_address[1],
            "http.response.status_code": 200,
        }.items() <= dict(span.attributes).items()

    def test_context_is_untouched(
        self, server: Server
    ) -> None:  # the server's redirects have no host, which it refuses
        with tracer.start_as_current_span("near") as near:
            before = otel_context.get_current()
            self.get(server.url + "/orders")
            assert otel_context.get_current() is before
            assert trace.get_current_span() is near
        assert not otel_context.get_current()

    def test_lines_of_headers_are_kept_and_not_changed(self, server: Server, spans: Any) -> None:
        lines = [f"Traceparent: 00-{1:032x}-{1:016x}-01", "X-Own: a:b"]
        before = list(lines)
        with pytest.raises(websocket.WebSocketBadStatusException):
            websocket.create_connection(server.url.replace("http:", "ws:"), header=lines)
        assert lines == before
        assert server.headers("x-own") == ["a:b"]
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]


@pytest.fixture
def url() -> Any:
    tracefill.install()
    with of_threads() as port:
        yield f"ws://127.0.0.1:{port}/"
    tracefill.uninstall()


def test_message_is_received_under_the_span_that_has_sent_it(url: str, spans: Any, no_log: Any) -> None:
    with tracer.start_as_current_span("opened"):
        client = websocket.create_connection(url)
    for message in ("text", "long" * 50_000):
        with tracer.start_as_current_span("near") as near:
            # The length of the message's frame, whatever went before it: 0x81, two, three or nine bytes, the mask.
            assert client.send(message) == len(message) + (6 if len(message) < 126 else 14)
            assert client.recv() == position(near)
            client.send_binary(b"binary")
            assert client.recv() == position(near)
    client.send("of nobody")
    answered = client.recv()
    client.close()
    wait_for(lambda: answered in [traceparent_of(span) for span in spans.get_finished_spans()])


def test_threads_that_send_at_once_keep_their_own(url: str) -> None:
    client = websocket.create_connection(url)
    sent: list[str] = []

    def say() -> None:
        with tracer.start_as_current_span("near") as near:
            for _ in range(20):
                client.send("work")
                sent.append(position(near))

    threads = [threading.Thread(target=say) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(client.recv() for _ in sent) == sorted(sent)
    client.close()


def test_app_sends_under_the_span_of_its_callback(url: str) -> None:
    seen: list[tuple[str, str]] = []

    def on_open(app: Any) -> None:
        with tracer.start_as_current_span("near"):
            seen.append(("sent", position(trace.get_current_span())))
            app.send("work")

    def on_message(app: Any, message: str) -> None:
        seen.append(("received", message))
        app.close()

    app = websocket.WebSocketApp(url, on_open=on_open, on_message=on_message)
    with in_thread(app.run_forever, lambda: wait_for(lambda: len(seen) == 2)):
        pass
    assert seen[0][1] == seen[1][1]
