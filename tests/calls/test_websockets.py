"""Clients of websockets, and the servers that hear to which span each of their messages belongs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.legacy.client
import websockets.legacy.protocol
import websockets.protocol
import websockets.sync.client
import websockets.sync.server
import wsproto.connection
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from websockets.asyncio.client import connect as connect_async  # imported before install(), as programs do
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

import tracefill
from tests.calls.client_contract import ClientContract, Server, only_client, server, traceparent_of, tracer
from tests.calls.running import SAMPLED, asgi, in_thread, wait_for
from tracefill.edge.announcements import Announcer, Heard

__all__ = ["server"]


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


# ---------------------------------------------------------------------------------------------------------------- servers


def told() -> str:
    """What a handler answers each message with: the position under which it works."""
    return position(trace.get_current_span())


def position(span: Any) -> str:
    """The traceparent of a span that is open."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextlib.contextmanager
def uvicorn(implementation: str) -> Iterator[int]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": told()})

    with asgi(app, ws=implementation) as port:
        yield port


@contextlib.contextmanager
def hypercorn() -> Iterator[int]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": told()})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Config()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "CRITICAL"
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        loop.run_until_complete(serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
        loop.close()

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    with in_thread(run, lambda: loop.call_soon_threadsafe(stop.set)):
        wait_for(listening)
        yield port


def answer(connection: Any) -> None:
    for _ in connection:
        connection.send(told())


async def answer_async(connection: Any) -> None:
    async for _ in connection:
        await connection.send(told())


@contextlib.contextmanager
def of_threads(handler: Any = answer, **settings: Any) -> Iterator[int]:
    with websockets.sync.server.serve(handler, "127.0.0.1", 0, **settings) as server:
        with in_thread(server.serve_forever, server.shutdown):
            yield server.socket.getsockname()[1]


@contextlib.contextmanager
def of_asyncio(handler: Any = answer_async, **settings: Any) -> Iterator[int]:
    ports: list[int] = []
    stop = threading.Event()

    async def main() -> None:
        async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, **settings) as server:
            ports.append(server.sockets[0].getsockname()[1])
            await asyncio.get_running_loop().run_in_executor(None, stop.wait)

    with in_thread(lambda: asyncio.run(main()), stop.set):
        wait_for(lambda: ports)
        yield ports[0]


SERVERS: dict[str, Callable[[], Any]] = {
    "uvicorn-websockets-sansio": lambda: uvicorn("websockets-sansio"),
    "uvicorn-websockets": lambda: uvicorn("websockets"),
    "uvicorn-wsproto": lambda: uvicorn("wsproto"),
    "hypercorn": hypercorn,
    "threads": of_threads,
    "asyncio": of_asyncio,
}


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install()
    yield
    tracefill.uninstall()


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, installed: None) -> Iterator[str]:
    with SERVERS[request.param]() as port:
        yield f"ws://127.0.0.1:{port}/orders?page=2"


def ask(client: Any, message: Any = "work") -> str:
    client.send(message)
    return str(client.recv(60))


@contextlib.contextmanager
def remote(flags: int, trace_state: str = "") -> Iterator[str]:
    """Within the span of somebody else."""
    held = SpanContext(0xA, 0xB, True, TraceFlags(flags), TraceState.from_header([trace_state]))
    token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(held)))
    yield f"00-{0xA:032x}-{0xB:016x}-{flags:02x}"
    otel_context.detach(token)


def server_span(spans: Any) -> Any:
    wait_for(lambda: any(span.kind is SpanKind.SERVER for span in spans.get_finished_spans()))
    (found,) = (span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER)
    return found


class TestEachServer:
    def test_connection_is_a_child_of_its_handshake(self, url: str, spans: Any, no_log: Any) -> None:
        with tracer.start_as_current_span("near") as near, connect(url) as client:
            shaken = only_client(spans)  # ended when it was answered
            answered = ask(client)
        served = server_span(spans)
        assert shaken.parent.span_id == near.get_span_context().span_id
        assert shaken.attributes["http.response.status_code"] == 101
        assert served.parent.span_id == shaken.context.span_id
        assert answered == traceparent_of(served)
        assert served.name == "GET"
        assert {
            "http.request.method": "GET",
            "url.path": "/orders",
            "url.query": "page=2",
            "url.scheme": "ws",
            "server.address": "127.0.0.1",
            "client.address": "127.0.0.1",
            "network.protocol.name": "websocket",
            "network.protocol.version": "1.1",
            "http.response.status_code": 101,
        }.items() <= dict(served.attributes).items()
        assert served.status.status_code is StatusCode.UNSET
        assert len(spans.get_finished_spans()) == 3  # none for a message

    def test_message_is_received_under_the_span_that_has_sent_it(self, url: str, spans: Any, no_log: Any) -> None:
        with connect(url) as client:
            for _ in range(3):
                with tracer.start_as_current_span("near") as near:
                    assert ask(client) == position(near)
                    assert ask(client) == position(near)

    def test_messages_of_no_span_belong_to_the_connection_again(self, url: str, spans: Any) -> None:
        with connect(url) as client:
            with tracer.start_as_current_span("near"):
                ask(client)
            answered = ask(client)
        assert answered == traceparent_of(server_span(spans))

    def test_message_of_the_span_that_opened_it_belongs_to_the_connection(self, url: str, spans: Any) -> None:
        with tracer.start_as_current_span("opened"), connect(url) as client:
            with tracer.start_as_current_span("inner") as inner:
                assert ask(client) == position(inner)
            answered = ask(client)
        assert answered == traceparent_of(server_span(spans))

    @pytest.mark.parametrize("compression", [None, "deflate"])
    @pytest.mark.parametrize("message", ["text", b"binary", "", "long" * 100_000, ["in", "", "parts"]], ids=type)
    def test_any_message(self, message: Any, compression: str | None, url: str) -> None:
        with connect(url, compression=compression) as client:
            for _ in range(2):
                with tracer.start_as_current_span("near") as near:
                    assert ask(client, message) == position(near)

    def test_messages_that_wait_keep_their_own(self, url: str) -> None:
        sent = []
        with connect(url) as client:
            for number in range(30):
                with tracer.start_as_current_span("near") as near:
                    for _ in range(number % 3):
                        client.send("work" * number)
                        sent.append(position(near))
            assert [client.recv(60) for _ in sent] == sent

    def test_sender_that_is_not_sampled_says_so(self, url: str) -> None:
        with connect(url) as client, remote(0) as position:
            assert ask(client) == position

    def test_pings_of_the_program_are_answered_and_no_more_than_these(self, url: str) -> None:
        with connect(url) as client:
            heard = []
            client.protocol.recv_frame, original = (
                lambda frame: (heard.append((frame.opcode.name, bytes(frame.data))), original(frame)),
                client.protocol.recv_frame,
            )
            with tracer.start_as_current_span("near"):
                assert client.ping(b"mine").wait(60)
                ask(client)
        assert [frame for frame in heard if frame[0] == "PONG"] == [("PONG", b"mine")]

    def test_what_cannot_be_read_belongs_to_the_connection(self, url: str, spans: Any, no_log: Any) -> None:
        no_log.set_level(logging.DEBUG, "tracefill")
        with connect(url) as client:
            with tracer.start_as_current_span("near"):
                ask(client)
            for announced in (b"tracefill nonsense", b"tracefill \xff\x00", b"tracefill " + b"0" * 115):
                client.pong(announced)
                answered = ask(client)
        assert answered == traceparent_of(server_span(spans))
        complaints = [record for record in no_log.records if "announcement" in record.getMessage()]
        assert len(complaints) == 3
        assert {record.levelname for record in complaints} == {"DEBUG"}

    def test_client_that_has_not_asked_is_not_heard(self, url: str, spans: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr("tracefill.calls.websockets.VERSION", "0")
        with connect(url) as client:
            assert "tracefill-websocket" not in client.response.headers
            client.pong(f"tracefill {SAMPLED}".encode())
            with tracer.start_as_current_span("near"):
                answered = ask(client)
        assert answered == traceparent_of(server_span(spans))

    def test_connections_one_after_the_other_do_not_see_each_other(self, url: str, spans: Any) -> None:
        for name in ("first", "second"):
            with connect(url) as client:
                with tracer.start_as_current_span(name) as near:
                    assert ask(client) == position(near)
                ask(client)
        assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 4

    def test_connections_that_are_open_when_it_is_uninstalled_go_on(self, url: str) -> None:
        with connect(url) as client:
            with tracer.start_as_current_span("near") as near:
                assert ask(client) == position(near)
            tracefill.uninstall()
            with tracer.start_as_current_span("near"):
                assert ask(client)


# Remembers every frame, as it came, and answers with them all.
STRANGER = """
import json
from websockets.protocol import Protocol
from websockets.sync.server import serve

def remember(protocol, frame):
    frames.append([frame.opcode.name, bytes(frame.data).decode()])
    recv_frame(protocol, frame)

def talk(connection):
    for _ in connection:
        connection.send(json.dumps(frames))

frames = []
recv_frame, Protocol.recv_frame = Protocol.recv_frame, remember
with serve(talk, "127.0.0.1", 0) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


def test_server_without_tracefill_sees_no_frame_but_the_programs_own(installed: None) -> None:
    with subprocess.Popen([sys.executable, "-c", STRANGER], stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        try:
            with connect(f"ws://127.0.0.1:{int(stranger.stdout.readline())}") as client:
                for text in "abc":
                    with tracer.start_as_current_span("near"):
                        client.send(text)
                        frames = json.loads(client.recv(60))
        finally:
            stranger.terminate()
    assert frames == [["TEXT", "a"], ["TEXT", "b"], ["TEXT", "c"]]


@pytest.mark.parametrize("running", SERVERS.values(), ids=SERVERS)
def test_server_in_which_it_is_off_does_not_answer(running: Any, installed: None) -> None:
    tracefill.uninstall()
    tracefill.install(only=["uvicorn", "hypercorn"])
    with (
        running() as port,
        connect(f"ws://127.0.0.1:{port}/", additional_headers={"tracefill-websocket": "1"}) as client,
    ):
        assert "tracefill-websocket" not in client.response.headers


# ---------------------------------------------------------------------------------- servers of the library, and its clients


def test_failure_of_a_handler_is_on_its_span(installed: None, spans: Any) -> None:
    def fail(connection: Any) -> None:
        connection.recv()
        raise ValueError("bad order")

    with of_threads(fail) as port, connect(f"ws://127.0.0.1:{port}/") as client:
        client.send("work")
        with pytest.raises(ConnectionClosedError):
            client.recv(60)
    span = server_span(spans)
    assert span.attributes["error.type"] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("running", [of_threads, of_asyncio])
def test_connection_that_is_refused_has_its_status_and_no_handler(running: Any, installed: None, spans: Any) -> None:
    seen = []

    def refuse(connection: Any, request: Any) -> Any:
        seen.append(told())
        return connection.respond(401, "who are you?")

    with running(process_request=refuse) as port, pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{port}/")
    span = server_span(spans)
    assert span.attributes["http.response.status_code"] == 401
    assert seen == [traceparent_of(span)]
    assert only_client(spans).attributes["error.type"] == "401"


def test_handshake_that_takes_too_long_ends_the_span(installed: None, spans: Any) -> None:
    async def think(connection: Any, request: Any) -> None:
        await asyncio.sleep(60)

    with of_asyncio(process_request=think, open_timeout=0.1) as port, pytest.raises(Exception):  # noqa: B017, PT011
        connect(f"ws://127.0.0.1:{port}/")
    assert server_span(spans).parent.span_id == only_client(spans).context.span_id


@pytest.mark.parametrize("running", [of_threads, of_asyncio])
def test_nothing_that_is_not_a_handshake_has_a_span(running: Any, installed: None, spans: Any) -> None:
    with running() as port:
        socket.create_connection(("127.0.0.1", port)).close()
        with connect(f"ws://127.0.0.1:{port}/"):
            pass
    assert server_span(spans).name == "GET"


def test_excluded_url_has_no_server_span(monkeypatch: Any, spans: Any) -> None:
    monkeypatch.setenv("OTEL_PYTHON_WEBSOCKETS_SERVER_EXCLUDED_URLS", "health")
    tracefill.install(only=["websockets"])
    try:
        with of_threads() as port, connect(f"ws://127.0.0.1:{port}/health") as client:
            answered = ask(client)
        assert answered == traceparent_of(only_client(spans))
        assert len(spans.get_finished_spans()) == 1
    finally:
        tracefill.uninstall()


def test_tracestate_goes_along_where_it_fits(installed: None) -> None:
    seen = []

    def look(connection: Any) -> None:
        for _ in connection:
            span = trace.get_current_span().get_span_context()
            seen.append((span.trace_id, span.trace_state.to_header()))
            connection.send("done")

    with of_threads(look) as port, connect(f"ws://127.0.0.1:{port}/") as client:
        for trace_state in ("vendor=1,other=2", "vendor=" + "1" * 52, "vendor=" + "1" * 53):
            with remote(1, trace_state):
                ask(client)
            ask(client)
    assert seen[::2] == [(0xA, "vendor=1,other=2"), (0xA, "vendor=" + "1" * 52), (0xA, "")]


def test_announcements_that_are_not_due_are_not_sent(installed: None) -> None:
    sent = []
    with of_threads() as port, tracer.start_as_current_span("opened"), connect(f"ws://127.0.0.1:{port}/") as client:
        client.protocol.send_pong, original = (
            lambda payload: (sent.append(payload), original(payload)),
            client.protocol.send_pong,
        )
        ask(client)
        for _ in range(2):
            with tracer.start_as_current_span("near") as near:
                ask(client)
                ask(client)
        ask(client)
        with otel_context_of_nobody():
            ask(client)
    assert len(sent) == 3
    assert sent[1] == b"tracefill " + position(near).encode()
    assert sent[2] == b"tracefill "


@contextlib.contextmanager
def otel_context_of_nobody() -> Iterator[None]:
    token = otel_context.attach(otel_context.Context())
    yield
    otel_context.detach(token)


def test_wait_for_gives_the_message_to_who_waits(installed: None, spans: Any) -> None:
    async def wait(connection: Any) -> None:
        while True:
            await asyncio.wait_for(connection.recv(), 60)
            await connection.send(told())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.recv(), 0.001)
            await connection.send(told())

    with of_asyncio(wait) as port, connect(f"ws://127.0.0.1:{port}/") as client:
        for _ in range(2):
            with tracer.start_as_current_span("near") as near:
                assert ask(client) == position(near)
                assert client.recv(60) != position(near)  # nothing came: it works for the connection


def test_handshake_keeps_the_callers_headers_whatever_their_shape(installed: None) -> None:
    seen = []

    def look(connection: Any) -> None:
        seen.append(connection.request.headers.get_all("X-Own"))

    given: Any
    with of_threads(look) as port:
        for given in (
            {"X-Own": "1"},
            [("X-Own", "1"), ("X-Own", "2")],
            websockets.datastructures.Headers([("X-Own", "1"), ("X-Own", "2")]),
        ):
            before = list(given.items()) if isinstance(given, dict) else list(given)
            with connect(f"ws://127.0.0.1:{port}/", additional_headers=given):
                pass
            assert (list(given.items()) if isinstance(given, dict) else list(given)) == before
    wait_for(lambda: len(seen) == 3)
    assert seen == [["1"], ["1", "2"], ["1", "2"]]


def test_legacy_client(installed: None, spans: Any) -> None:
    async def main(url: str) -> list[str]:
        answers = []
        async with websockets.legacy.client.connect(url, extra_headers={"X-Own": "1"}) as client:
            for _ in range(2):
                with tracer.start_as_current_span("near") as near:
                    await client.send("work")
                    answers.append((await client.recv(), position(near)))
        return answers

    with of_asyncio() as port:
        answers = asyncio.run(main(f"ws://127.0.0.1:{port}/"))
    assert [answer for answer, _ in answers] == [near for _, near in answers]
    assert server_span(spans).parent.span_id == only_client(spans).context.span_id


def test_answer_in_the_place_of_the_legacy_clients_connection_is_an_error(server: Server, spans: Any) -> None:
    async def main() -> None:
        with pytest.raises(websockets.legacy.exceptions.InvalidStatusCode):
            await websockets.legacy.client.connect(server.url.replace("http:", "ws:") + "/status/503")

    tracefill.install(only=["websockets"])
    asyncio.run(main())
    tracefill.uninstall()
    assert only_client(spans).attributes["error.type"] == "503"


# ------------------------------------------------------------------------------------------------------------ both sides


def test_announcement_holds_from_the_next_message_on(spans: Any) -> None:
    announcer, heard = Announcer(otel_context.Context()), Heard()
    positions = []
    for name in ("a", "a", None, "b"):
        with tracer.start_as_current_span(name) if name else otel_context_of_nobody():
            positions.append(trace.get_current_span().get_span_context().span_id)
            if (payload := announcer.due()) is not None:
                assert len(payload) <= 125
                heard.pong(payload)
        heard.message()
    received = []
    for _ in positions:
        heard.leave()
        heard.deliver()
        received.append(trace.get_current_span().get_span_context().span_id)
    heard.leave()
    assert received == positions
    assert not otel_context.get_current()


def test_later_of_two_announcements_holds() -> None:
    heard = Heard()
    for number in (1, 2):
        heard.pong(f"tracefill 00-{number:032x}-{number:016x}-01".encode())
    heard.message()
    heard.deliver()
    assert trace.get_current_span().get_span_context().span_id == 2
    heard.leave()


def test_what_was_current_stays_in_force_beside_the_span() -> None:
    heard = Heard()
    heard.pong(f"tracefill {SAMPLED}".encode())
    heard.message()
    token = otel_context.attach(otel_context.set_value("tenant", "a"))
    heard.deliver()
    assert otel_context.get_value("tenant") == "a"
    assert trace.get_current_span().get_span_context().is_remote
    heard.leave()
    assert otel_context.get_value("tenant") == "a"
    otel_context.detach(token)
