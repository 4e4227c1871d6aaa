"""Servers in threads of this process, and a client so plain that nothing instruments it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer, make_server

from opentelemetry import trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"


class Response(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


def here() -> dict[str, str]:
    """The traceparent of the current span, as any client would write it."""
    span = trace.get_current_span().get_span_context()
    return {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 1:02x}"}


def ask(port: int, path: str = "/", headers: Mapping[str, str] | None = None, method: str = "GET") -> Response:
    """One request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return send(port, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def send(port: int, request: bytes) -> Response:
    """These very bytes; the response read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return response_of(received)


def response_of(received: bytes) -> Response:
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Response(int(status.split()[1]), headers, body)


@contextlib.contextmanager
def wsgi(
    app: Any, server_class: type[WSGIServer] = WSGIServer, handler: type[ServerHandler] = ServerHandler
) -> Iterator[int]:
    """wsgiref on a free port."""

    class Requests(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:  # wsgiref's own, but for the handler
            self.raw_requestline = self.rfile.readline(65537)
            if self.parse_request():
                running = handler(self.rfile, self.wfile, sys.stderr, self.get_environ(), multithread=False)
                running.request_handler = self  # type: ignore[attr-defined]
                running.run(self.server.get_app())

    with make_server("127.0.0.1", 0, app, server_class=server_class, handler_class=Requests) as server:
        with in_thread(server.serve_forever, server.shutdown):
            yield server.server_port


@contextlib.contextmanager
def asgi(app: Any, **settings: Any) -> Iterator[int]:
    """uvicorn on a free port."""
    import uvicorn

    settings = {"log_level": "error", "lifespan": "off", **settings}
    config = uvicorn.Config(app, host="127.0.0.1", port=0, **settings)
    server = uvicorn.Server(config)
    with in_thread(server.run, lambda: setattr(server, "should_exit", True)):
        wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]


@contextlib.contextmanager
def aiohttp_web(app: Any) -> Iterator[int]:
    """aiohttp's own server on a free port, in a loop of its own."""
    from aiohttp import web

    loop, stop, ports = asyncio.new_event_loop(), asyncio.Event(), list[int]()

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        await stop.wait()
        await runner.cleanup()

    with in_thread(lambda: loop.run_until_complete(serve()), lambda: loop.call_soon_threadsafe(stop.set)):
        wait_for(lambda: ports)
        yield ports[0]


@contextlib.contextmanager
def in_thread(run: Any, stop: Any) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(60)


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    """Until it is true; AssertionError when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


async def ask_in_thread(*arguments: Any) -> Response:
    """`ask` for programs whose server runs in the same loop."""
    return await asyncio.get_running_loop().run_in_executor(None, ask, *arguments)
