"""Entry: ASGI servers. FastAPI, Starlette and plain applications, served by uvicorn."""

import asyncio
import contextlib
import os
import socket
import threading

from tests.boundaries import Program, boundary
from tests.calls.running import asgi, ask, here, wait_for

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.starlette:StarletteInstrumentor",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",
]


def fastapi_app(**settings):
    import fastapi

    return fastapi.FastAPI(**settings)


def call_twice(b: Program, app, path="/{}", **settings):
    with asgi(app, **settings) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, path.format(key), here()).status == 200
        return port


def instrumented(app):
    """As a user of contrib wraps a plain application; a user of tracefill does nothing."""
    if "contrib" not in os.environ["BOUNDARY_MODE"]:
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app)


async def answer(send, *chunks):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@boundary("ASGI application")
def plain(b: Program) -> None:
    async def app(scope, receive, send):
        await asyncio.sleep(0)
        b.far(scope["path"][1:])
        await answer(send, b"done")

    call_twice(b, instrumented(app))


@boundary("ASGI application, work between and after the messages of the response")
def streaming(b: Program) -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        b.far(scope["path"][1:])
        await send({"type": "http.response.body", "body": b"done"})
        b.far(scope["path"][1:])

    call_twice(b, instrumented(app))


@boundary("ASGI application of two layers, one a function")
def closure(b: Program) -> None:
    async def app(scope, receive, send):
        b.far(scope["path"][1:])
        await answer(send, b"done")

    inner = instrumented(app)

    async def outer(scope, receive, send):
        await inner(scope, receive, send)

    call_twice(b, outer)


@boundary("ASGI application fails: next request is clean")
def failing(b: Program) -> None:
    import logging

    logging.getLogger("uvicorn.error").disabled = True

    async def app(scope, receive, send):
        b.far(scope["path"][1:])
        raise ValueError("the user's own")

    with asgi(instrumented(app)) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 500


@boundary("ASGI requests without a context have roots of their own", expect="own root")
def alone(b: Program) -> None:
    async def app(scope, receive, send):
        b.far(scope["path"][1:])
        await answer(send, b"done")

    with b.near(), asgi(app) as port:
        for key in "ab":
            ask(port, f"/{key}")


@boundary("Starlette handler")
def starlette_handler(b: Program) -> None:
    from starlette import applications
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def show(request):
        b.far(request.path_params["key"])
        return PlainTextResponse("done")

    call_twice(b, applications.Starlette(routes=[Route("/{key}", show)]))


@boundary("Starlette BackgroundTask")
def starlette_background(b: Program) -> None:
    from starlette import applications
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    done = []

    async def work(key):
        await asyncio.sleep(0.01)
        b.far(key)
        done.append(key)

    async def show(request):
        return PlainTextResponse("done", background=BackgroundTask(work, request.path_params["key"]))

    call_twice(b, applications.Starlette(routes=[Route("/{key}", show)]))
    wait_for(lambda: len(done) == 2)


@boundary("Starlette with its own OpenTelemetryMiddleware")
def starlette_own(b: Program) -> None:
    from starlette.applications import Starlette  # contrib does not know it
    from starlette.middleware import Middleware
    from starlette.middleware.opentelemetry import OpenTelemetryMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def show(request):
        b.far(request.path_params["key"])
        return PlainTextResponse("done")

    own = type("OpenTelemetryMiddleware", (OpenTelemetryMiddleware,), {})
    kind = Starlette.__mro__[-2] if "contrib" in os.environ["BOUNDARY_MODE"] else Starlette
    call_twice(b, kind(routes=[Route("/{key}", show)], middleware=[Middleware(own)]))


@boundary("FastAPI async handler")
def fastapi_async(b: Program) -> None:
    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("FastAPI sync handler (thread pool) + Depends(yield)")
def fastapi_depends(b: Program) -> None:
    from fastapi import Depends

    app = fastapi_app()

    def resource(key: str):
        yield key
        b.far(key)

    @app.get("/{key}")
    def show(key: str, held: str = Depends(resource)):
        b.far(held)
        return "done"

    call_twice(b, app)


@boundary("FastAPI StreamingResponse (async generator)")
def fastapi_streaming(b: Program) -> None:
    from fastapi.responses import StreamingResponse

    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        async def body():
            yield b"first"
            b.far(key)
            yield b"second"

        return StreamingResponse(body())

    call_twice(b, app)


@boundary("FastAPI StreamingResponse (sync generator, in threads)")
def fastapi_streaming_threads(b: Program) -> None:
    from fastapi.responses import StreamingResponse

    app = fastapi_app()

    @app.get("/{key}")
    def show(key: str):
        def body():
            yield b"first"
            b.far(key)
            yield b"second"

        return StreamingResponse(body())

    call_twice(b, app)


@boundary("FastAPI StreamingResponse, span held in generator, client disconnects")
def fastapi_disconnect(b: Program) -> None:
    from fastapi.responses import StreamingResponse

    app = fastapi_app()
    gone, worked, left = threading.Event(), threading.Event(), threading.Event()

    @app.get("/{key}")
    async def show(key: str):
        async def body():
            try:
                with b.span("held"):
                    while not gone.is_set():
                        yield b"x" * 1024
                        await asyncio.sleep(0.01)
                    b.far(key)
                    worked.set()
                    while True:
                        yield b"x" * 1024
                        await asyncio.sleep(0.01)
            finally:
                left.set()

        return StreamingResponse(body())

    with asgi(app) as port:
        with b.near("a"), socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"GET /a HTTP/1.1\r\nHost: h\r\ntraceparent: {here()['traceparent']}\r\n\r\n".encode())
            client.recv(1024)
            gone.set()
            assert worked.wait(30)
        assert left.wait(30)


@boundary("FastAPI BackgroundTasks (sync + async)")
def fastapi_background(b: Program) -> None:
    from fastapi import BackgroundTasks

    app = fastapi_app()
    done = []

    async def later(key):
        await asyncio.sleep(0.01)
        b.far(key)
        done.append(key)

    def later_in_thread(key):
        b.far(key)
        done.append(key)

    @app.get("/{key}")
    async def show(key: str, tasks: BackgroundTasks):
        tasks.add_task(later, key)
        tasks.add_task(later_in_thread, key)
        return "done"

    call_twice(b, app)
    wait_for(lambda: len(done) == 4)


@boundary("FastAPI handler asyncio.create_task fire and forget")
def fastapi_task(b: Program) -> None:
    app = fastapi_app()
    tasks = []

    async def work(key):
        b.far(key)

    @app.get("/{key}")
    async def show(key: str):
        tasks.append(asyncio.create_task(work(key)))
        return "done"

    call_twice(b, app)


@boundary("FastAPI handler asyncio.create_task that works for a while")
def fastapi_long_task(b: Program) -> None:
    app = fastapi_app()
    done = []

    async def work(key):
        with b.span("work"):
            await asyncio.sleep(0.05)
            b.far(key)
        done.append(key)

    @app.get("/{key}")
    async def show(key: str):
        app.state.task = asyncio.create_task(work(key))
        return "done"

    with asgi(app) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())
        wait_for(lambda: len(done) == 2)


@boundary("FastAPI + BaseHTTPMiddleware, span opened in the middleware")
def fastapi_middleware(b: Program) -> None:
    app = fastapi_app()

    @app.middleware("http")
    async def around(request, call_next):
        with b.span("middleware"):
            return await call_next(request)

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("FastAPI mounted in Starlette")
def fastapi_mounted(b: Program) -> None:
    from starlette import applications
    from starlette.routing import Mount

    inner = fastapi_app()

    @inner.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    call_twice(b, applications.Starlette(routes=[Mount("/inner", inner)]), "/inner/{}")


@boundary("FastAPI inside of a plain function")
def fastapi_hidden(b: Program) -> None:
    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    async def outer(scope, receive, send):
        await app(scope, receive, send)

    call_twice(b, outer)


@boundary("FastAPI whose own telemetry is off")
def fastapi_silent(b: Program) -> None:
    app = fastapi_app(telemetry={"tracing": False})

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("FastAPI with a lifespan that opens a span")
def fastapi_lifespan(b: Program) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app):
        with b.span("lifespan"):
            yield

    app = fastapi_app(lifespan=lifespan)

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    import uvicorn

    from tests.calls.running import in_thread

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    with in_thread(server.run, lambda: setattr(server, "should_exit", True)):
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("ASGI websocket: handshake context, per-message work")
def websocket(b: Program) -> None:
    from fastapi import WebSocket
    from websockets.sync.client import connect

    app = fastapi_app()

    @app.websocket("/{key}")
    async def talk(socket: WebSocket, key: str):
        await socket.accept()
        b.far(key)
        async for _ in socket.iter_text():
            b.far(key)
            await socket.send_text("done")

    with asgi(app) as port:
        for key in "ab":
            with b.near(key), connect(f"ws://127.0.0.1:{port}/{key}", additional_headers=here()) as client:
                for _ in range(2):
                    client.send("work")
                    client.recv()


@boundary("ASGI websocket of a plain application")
def plain_websocket(b: Program) -> None:
    from websockets.sync.client import connect

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            b.far(scope["path"][1:])
            await send({"type": "websocket.send", "text": "done"})

    with asgi(instrumented(app)) as port:
        for key in "ab":
            with b.near(key), connect(f"ws://127.0.0.1:{port}/{key}", additional_headers=here()) as client:
                client.send("work")
                client.recv()


@boundary("ASGI application on hypercorn")
def hypercorn(b: Program) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        b.far(scope["path"][1:])
        await answer(send, b"done")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Config()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "CRITICAL"
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    served = instrumented(app)
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(served, config, shutdown_trigger=stop.wait)))
    thread.start()

    def listening():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    wait_for(listening)
    for key in "ab":
        with b.near(key):
            assert ask(port, f"/{key}", here()).status == 200
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)


@boundary("ASGI middleware of the user's outside that opens a span, and works after the application")
def outer_middleware(b: Program) -> None:
    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    async def opening(scope, receive, send):
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        key = scope["path"][1:]
        b.far(key)
        with b.span("middleware"):
            await app(scope, receive, send)
        b.far(key)

    call_twice(b, opening)


@boundary("ASGI middleware of the user's in the stack, a class, opens a span")
def inner_middleware(b: Program) -> None:
    class Opening:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            with b.span("middleware"):
                await self.app(scope, receive, send)

    app = fastapi_app()
    app.add_middleware(Opening)

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("FastAPI routers, dependencies of each, asyncio.to_thread and run_in_threadpool")
def fastapi_router(b: Program) -> None:
    from fastapi import APIRouter, Depends
    from starlette.concurrency import run_in_threadpool

    async def around(key: str):
        b.far(key)
        yield
        b.far(key)

    outer, inner, app = APIRouter(prefix="/outer"), APIRouter(dependencies=[Depends(around)]), fastapi_app()

    @inner.get("/{key}")
    async def show(key: str):
        await asyncio.to_thread(b.far, key)
        await run_in_threadpool(b.far, key)
        await asyncio.gather(*(asyncio.to_thread(b.far, key) for _ in range(2)))
        return "done"

    outer.include_router(inner)
    app.include_router(outer)
    call_twice(b, app, "/outer/{}")


@boundary("FastAPI exception handlers: of a class, of HTTPException, of validation")
def fastapi_exceptions(b: Program) -> None:
    from fastapi import HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import PlainTextResponse

    class Sold(Exception):
        pass

    app = fastapi_app()

    @app.exception_handler(Sold)
    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    async def sorry(request, error):
        b.far(request.path_params["key"])
        return PlainTextResponse("sorry")

    @app.get("/{key}")
    async def show(key: str, number: int = 0):
        if key == "a":
            raise Sold
        raise HTTPException(404)

    call_twice(b, app)
    with asgi(app) as port, b.near("c"):
        assert ask(port, "/c?number=none", here()).status == 200


@boundary("FastAPI sub-application mounted in FastAPI")
def fastapi_sub_application(b: Program) -> None:
    outer, inner = fastapi_app(), fastapi_app()

    @inner.get("/{key}")
    def show(key: str):
        b.far(key)
        return "done"

    outer.mount("/inner", inner)
    call_twice(b, outer, "/inner/{}")


@boundary("FastAPI events that go on (SSE), fed by a task of the request")
def fastapi_events(b: Program) -> None:
    from fastapi.responses import StreamingResponse

    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        queue = asyncio.Queue()

        async def feed():
            for _ in range(2):
                b.far(key)
                await queue.put("data: x\n\n")
            await queue.put(None)

        async def body():
            task = asyncio.create_task(feed())
            while (event := await queue.get()) is not None:
                b.far(key)
                yield event
            await task

        return StreamingResponse(body(), media_type="text/event-stream")

    call_twice(b, app)


@boundary("Starlette HTTPEndpoint and a mounted Starlette")
def starlette_endpoint(b: Program) -> None:
    from starlette import applications
    from starlette.endpoints import HTTPEndpoint
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    class Show(HTTPEndpoint):
        async def get(self, request):
            b.far(request.path_params["key"])
            return PlainTextResponse("done")

    inner = applications.Starlette(routes=[Route("/{key}", Show)])
    call_twice(b, applications.Starlette(routes=[Mount("/inner", inner)]), "/inner/{}")


@boundary("FastAPI lifespan that starts a loop of work: no request's", expect="own root")
def lifespan_loop(b: Program) -> None:
    seen, done = [], []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async def work():
            while True:
                await asyncio.sleep(0.005)
                while seen:
                    seen.pop()
                    b.far()
                    done.append(1)

        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = fastapi_app(lifespan=lifespan)

    @app.get("/{key}")
    async def show(key: str):
        seen.append(key)
        return "done"

    import uvicorn

    from tests.calls.running import in_thread

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    with in_thread(server.run, lambda: setattr(server, "should_exit", True)):
        wait_for(lambda: server.started)
        for key in "ab":
            with b.near(key):
                ask(server.servers[0].sockets[0].getsockname()[1], f"/{key}", here())
        wait_for(lambda: len(done) == 2)


@boundary("FastAPI test client within a span")
def test_client(b: Program) -> None:
    from fastapi.testclient import TestClient

    app = fastapi_app()

    @app.get("/{key}")
    async def show(key: str):
        b.far(key)
        return "done"

    client = TestClient(app)
    for key in "ab":
        with b.near(key):
            assert client.get(f"/{key}").status_code == 200
