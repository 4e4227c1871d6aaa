"""Websockets: a connection belongs to the span that opened it, each message to the span that sent it."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading

from tests.boundaries import Program, boundary
from tests.calls.running import asgi, in_thread, wait_for

# Clients that are imported before anything is installed; the servers are imported afterwards.
FIRST = "from websockets.sync.client import connect; from websockets.asyncio.client import connect"

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.asyncio:AsyncioInstrumentor",
    "opentelemetry.instrumentation.starlette:StarletteInstrumentor",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",
]


def fastapi_app(b: Program):
    """Works once when the connection is open (`far` of its path), and once for each message (`far` of its text)."""
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()
        b.far(key)
        async for text in socket.iter_text():
            b.far(text[:1])
            await socket.send_text("done")

    return app


def plain_app(b: Program):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            b.far((message.get("text") or message["bytes"].decode())[:1])
            await send({"type": "websocket.send", "text": "done"})

    if "contrib" not in os.environ["BOUNDARY_MODE"]:
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app)


@contextlib.contextmanager
def opened(b: Program, port: int, key: str = "o", **settings):
    """A connection that was opened in a span of its own."""
    from websockets.sync.client import connect

    with b.near(key):
        client = connect(f"ws://127.0.0.1:{port}/{key}", **settings)
    with client:
        yield client


def ask(client, text) -> None:
    client.send(text)
    assert client.recv() == "done"


def from_two_spans(b: Program, port: int, **settings) -> None:
    with opened(b, port, **settings) as client:
        for key in "ab":
            with b.near(key):
                ask(client, key)


@boundary("websocket: each message sent from another span")
def row(b: Program) -> None:
    with asgi(fastapi_app(b)) as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, uvicorn on wsproto")
def wsproto(b: Program) -> None:
    with asgi(fastapi_app(b), ws="wsproto") as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, uvicorn on websockets")
def legacy(b: Program) -> None:
    with asgi(fastapi_app(b), ws="websockets") as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, without compression")
def uncompressed(b: Program) -> None:
    with asgi(fastapi_app(b)) as port:
        from_two_spans(b, port, compression=None)


@boundary("websocket: each message sent from another span, to a plain application")
def plain(b: Program) -> None:
    with asgi(plain_app(b)) as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, to Starlette on wsproto")
def starlette(b: Program) -> None:
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    async def talk(socket):
        await socket.accept()
        async for data in socket.iter_bytes():
            b.far(data.decode())
            await socket.send_text("done")

    with asgi(Starlette(routes=[WebSocketRoute("/{key}", talk)]), ws="wsproto") as port:
        with opened(b, port) as client:
            for key in "ab":
                with b.near(key):
                    ask(client, key.encode())


@boundary("websocket: each message sent from another span, to hypercorn")
def hypercorn(b: Program) -> None:
    with hypercorn_server(plain_app(b)) as port:
        from_two_spans(b, port)


@contextlib.contextmanager
def hypercorn_server(app):
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Config()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "CRITICAL"
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def websockets_only(scope, receive, send):
        if scope["type"] == "websocket":
            await app(scope, receive, send)

    def run():
        loop.run_until_complete(serve(websockets_only, config, shutdown_trigger=stop.wait))

    def listening():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    with in_thread(run, lambda: loop.call_soon_threadsafe(stop.set)):
        wait_for(listening)
        yield port


@contextlib.contextmanager
def threads_server(handler):
    from websockets.sync.server import serve

    with serve(handler, "127.0.0.1", 0) as server:
        with in_thread(server.serve_forever, server.shutdown):
            yield server.socket.getsockname()[1]


@boundary("websocket: each message sent from another span, to a server of threads")
def own_threads(b: Program) -> None:
    def talk(connection):
        b.far(connection.request.path[1:])
        for text in connection:
            b.far(text)
            connection.send("done")

    with threads_server(talk) as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, received in fragments by a server of threads")
def own_threads_streaming(b: Program) -> None:
    def talk(connection):
        for _ in range(2):
            b.far("".join(connection.recv_streaming())[:1])
            connection.send("done")

    with threads_server(talk) as port, opened(b, port) as client:
        for key in "ab":
            with b.near(key):
                ask(client, iter([key, "more", "and more"]))


@contextlib.contextmanager
def asyncio_server(handler):
    from websockets.asyncio.server import serve

    ports = []

    async def main():
        async with serve(handler, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            await asyncio.get_running_loop().run_in_executor(None, stop.wait)

    stop = threading.Event()
    with in_thread(lambda: asyncio.run(main()), stop.set):
        wait_for(lambda: ports)
        yield ports[0]


@boundary("websocket: each message sent from another span, to a server of asyncio")
def own_asyncio(b: Program) -> None:
    async def talk(connection):
        b.far(connection.request.path[1:])
        async for text in connection:
            await asyncio.sleep(0)
            b.far(text)
            await connection.send("done")

    with asyncio_server(talk) as port:
        from_two_spans(b, port)


@boundary("websocket: each message sent from another span, received in fragments by a server of asyncio")
def own_asyncio_streaming(b: Program) -> None:
    async def talk(connection):
        for _ in range(2):
            b.far("".join([part async for part in connection.recv_streaming()])[:1])
            await connection.send("done")

    with asyncio_server(talk) as port, opened(b, port) as client:
        for key in "ab":
            with b.near(key):
                ask(client, iter([key, "more", "and more"]))


@boundary("websocket of asyncio: each message sent from another span")
async def client_of_asyncio(b: Program) -> None:
    import websockets

    with asgi(fastapi_app(b)) as port:
        with b.near("o"):
            client = await websockets.connect(f"ws://127.0.0.1:{port}/o")
        async with client:
            for key in "ab":
                with b.near(key):
                    await client.send(key)
                    await client.recv()


@boundary("websocket of the legacy client: each message sent from another span")
async def client_of_old(b: Program) -> None:
    from websockets.legacy.client import connect

    with asgi(fastapi_app(b)) as port:
        with b.near("o"):
            client = await connect(f"ws://127.0.0.1:{port}/o")
        for key in "ab":
            with b.near(key):
                await client.send(key)
                await client.recv()
        await client.close()


@boundary("websocket of websocket-client: each message sent from another span")
def other_library(b: Program) -> None:
    import websocket

    with asgi(fastapi_app(b)) as port:
        with b.near("o"):
            client = websocket.create_connection(f"ws://127.0.0.1:{port}/o", header=["X-Own: 1"])
        for key in "ab":
            with b.near(key):
                ask(client, key)
        client.close()


@boundary("websocket of asyncio: tasks that send at once, each in a span")
async def gathered(b: Program) -> None:
    from websockets.asyncio.client import connect

    async def say(client, key):
        with b.near(key):
            await asyncio.sleep(0)
            await client.send(key)
            await asyncio.sleep(0)
            await client.send(iter([key, "more"]))

    with asgi(fastapi_app(b)) as port:
        with b.near("o"):
            client = await connect(f"ws://127.0.0.1:{port}/o")
        async with client:
            await asyncio.gather(*(say(client, key) for key in "abcdef"))
            for _ in range(12):
                await client.recv()


@boundary("websocket: threads that send at once, each in a span")
def threads_at_once(b: Program) -> None:
    def say(client, key):
        with b.near(key):
            for _ in range(5):
                client.send(key)

    with asgi(fastapi_app(b)) as port, opened(b, port) as client:
        threads = [threading.Thread(target=say, args=(client, key)) for key in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(15):
            client.recv(60)


@boundary("websocket: messages sent faster than they are received")
def ahead(b: Program) -> None:
    with asgi(fastapi_app(b)) as port, opened(b, port) as client:
        for key in "abc":
            with b.near(key):
                client.send(key)
                client.send(key * 100_000)
        for _ in range(6):
            client.recv(60)


@boundary("websocket: spans within spans, and back")
def nested(b: Program) -> None:
    with asgi(fastapi_app(b)) as port, opened(b, port) as client:
        with b.near("a"):
            ask(client, "a")
            with b.span("nearb"):
                ask(client, "b")
            ask(client, "a")
            with b.span("nearc"), b.span("between"):
                ask(client, "c")


@boundary("websocket: the span that opened it, others, and it again")
def back(b: Program) -> None:
    from websockets.sync.client import connect

    with asgi(fastapi_app(b)) as port:
        with b.near("o"), connect(f"ws://127.0.0.1:{port}/o") as client:
            ask(client, "o")
            with b.span("neara"):
                ask(client, "a")
            ask(client, "o")


@boundary("websocket: a message of no span belongs to the connection")
def of_no_span(b: Program) -> None:
    with asgi(fastapi_app(b)) as port, opened(b, port) as client:
        with b.near("a"):
            ask(client, "a")
        ask(client, "o")


@boundary("websocket opened outside of any span")
def opened_outside(b: Program) -> None:
    from websockets.sync.client import connect

    with asgi(plain_app(b)) as port, connect(f"ws://127.0.0.1:{port}/o") as client:
        for key in "ab":
            with b.near(key):
                ask(client, key)


@boundary("websocket opened outside of any span: its own messages have no sender", expect="own root")
def outside(b: Program) -> None:
    from websockets.sync.client import connect

    with asgi(plain_app(b)) as port, connect(f"ws://127.0.0.1:{port}/o") as client:
        with b.near("a"):
            client.ping().wait(60)
        ask(client, "z")


@boundary("websockets side by side")
def two(b: Program) -> None:
    with asgi(fastapi_app(b)) as port, opened(b, port, "o") as one, opened(b, port, "p") as other:
        for key in "ab":
            with b.near(key):
                ask(one, key)
                ask(other, key)
        ask(one, "o")
        ask(other, "p")


@boundary("websocket: the handler leaves each message to a task")
def to_tasks(b: Program) -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()

        async def work(text):
            await asyncio.sleep(0.02)
            b.far(text)
            await socket.send_text("done")

        tasks = [asyncio.create_task(work(text)) async for text in socket.iter_text()]
        await asyncio.gather(*tasks, return_exceptions=True)

    with asgi(app) as port, opened(b, port) as client:
        for key in "abc":
            with b.near(key):
                client.send(key)
        for _ in range(3):
            client.recv(60)


@boundary("websocket: a task of the handler reads, others work")
def read_by_a_task(b: Program) -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()

        async def read():
            async for text in socket.iter_text():
                b.far(text)
                await socket.send_text("done")

        await asyncio.create_task(read())
        b.far("o")

    with asgi(app) as port:
        from_two_spans(b, port)


@boundary("websocket: handler that waits for a message with a timeout")
def with_timeout(b: Program) -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()
        for _ in range(2):
            b.far(await asyncio.wait_for(socket.receive_text(), 60))
            await socket.send_text("done")

    with asgi(app) as port:
        from_two_spans(b, port)


@boundary("websocket: handler with a span of its own around all messages", expect="connected")
def session(b: Program) -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()
        with contextlib.suppress(Exception), b.span("session"):
            while True:
                b.far(await socket.receive_text())
                await socket.send_text("done")
        b.far("o")

    with asgi(app) as port:
        from_two_spans(b, port)


@boundary("websocket: handler that opens a span for each message, and reads on in it")
def conversation(b: Program) -> None:
    from fastapi import FastAPI, WebSocket

    app = FastAPI()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()
        for _ in range(2):
            text = await socket.receive_text()
            with b.span("conversation"):
                b.far(text)
                await socket.send_text("done")
                b.far(await socket.receive_text())
                await socket.send_text("done")

    with asgi(app) as port, opened(b, port) as client:
        for key in "ab":
            with b.near(key):
                ask(client, key)
                ask(client, key)


CHILD = """
import sys
from opentelemetry import trace
from tests.boundaries.program import Program
from websockets.sync.client import connect

b = Program()
with connect(sys.argv[1]) as client:
    for key in "ab":
        with b.near(key):
            client.send(key)
            client.recv()
"""


@boundary("websocket: the client is another process")
def other_process(b: Program) -> None:
    with asgi(plain_app(b)) as port:
        subprocess.run([sys.executable, "-c", CHILD, f"ws://127.0.0.1:{port}/o"], check=True, timeout=60)
