"""Entry: aiohttp.web."""

import asyncio
import threading

from tests.boundaries import Program, boundary
from tests.calls.running import aiohttp_web, ask, here, wait_for

CONTRIB = ["opentelemetry.instrumentation.aiohttp_server:AioHttpServerInstrumentor"]


def app_with(handler, **settings):
    from aiohttp import web

    app = web.Application(**settings)
    app.router.add_get("/{key}", handler)
    return app


def call_twice(b: Program, app):
    with aiohttp_web(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 200


def key_of(request):
    return request.match_info["key"]


@boundary("aiohttp.web handler")
def handler(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        await asyncio.sleep(0)
        b.far(key_of(request))
        return web.Response(text="done")

    call_twice(b, app_with(show))


@boundary("aiohttp.web StreamResponse")
def stream(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        b.far(key_of(request))
        await response.write_eof()
        return response

    call_twice(b, app_with(show))


@boundary("aiohttp.web body of an async generator")
def generator(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        async def body():
            yield b"first"
            b.far(key_of(request))
            yield b"second"

        return web.Response(body=body())

    call_twice(b, app_with(show))


@boundary("aiohttp.web middleware and on_response_prepare")
def middleware(b: Program) -> None:
    from aiohttp import web

    @web.middleware
    async def around(request, handler):
        b.far(key_of(request))
        return await handler(request)

    async def prepare(request, response):
        b.far(key_of(request))

    async def show(request):
        return web.Response(text="done")

    app = app_with(show, middlewares=[around])
    app.on_response_prepare.append(prepare)
    call_twice(b, app)


@boundary("aiohttp.web handler raises HTTPFound")
def raised(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        b.far(key_of(request))
        raise web.HTTPOk

    call_twice(b, app_with(show))


@boundary("aiohttp.web handler create_task, waited for at the end", expect="later")
def task(b: Program) -> None:
    from aiohttp import web

    async def work(key):
        b.far(key)

    async def show(request):
        request.app["work"].append(asyncio.create_task(work(key_of(request))))
        return web.Response(text="done")

    app = app_with(show)
    app["work"] = []
    call_twice(b, app)


@boundary("aiohttp.web websocket")
def websocket(b: Program) -> None:
    import websockets.sync.client
    from aiohttp import WSMsgType, web

    async def show(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                b.far(message.data)
                await socket.send_str("done")
        return socket

    with aiohttp_web(app_with(show)) as port:
        for key in "ab":
            with (
                b.near(key),
                websockets.sync.client.connect(f"ws://127.0.0.1:{port}/{key}", additional_headers=here()) as client,
            ):
                client.send(key)
                client.recv()


@boundary("aiohttp.web.Server without an application")
def low_level(b: Program) -> None:
    from aiohttp import web

    started, loop = [], asyncio.new_event_loop()

    async def show(request):
        b.far(request.path[1:])
        return web.Response(text="done")

    async def serve():
        server = await loop.create_server(web.Server(show), "127.0.0.1", 0)
        started.append(server.sockets[0].getsockname()[1])
        await stop.wait()
        server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    wait_for(lambda: started)
    for key in "ab":
        with b.near(key):
            ask(started[0], f"/{key}", here())
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@boundary("aiohttp.web requests on one connection without a context", expect="own root")
def alone(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        b.far(key_of(request))
        return web.Response(text="done")

    with b.near(), aiohttp_web(app_with(show)) as port:
        for key in "ab":
            ask(port, f"/{key}")


@boundary("aiohttp.web View class, work in asyncio.to_thread")
def view_class(b: Program) -> None:
    from aiohttp import web

    class Show(web.View):
        async def get(self):
            await asyncio.to_thread(b.far, key_of(self.request))
            return web.Response(text="done")

    call_twice(b, app_with(Show))


@boundary("aiohttp.web sub-application")
def sub_application(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        b.far(key_of(request))
        return web.Response(text="done")

    app = web.Application()
    app.add_subapp("/inner", app_with(show))
    with aiohttp_web(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/inner/{key}", here()).status == 200


@boundary("aiohttp.web events that go on (SSE), fed by a task of the request")
def events(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue = asyncio.Queue()

        async def produce():
            for _ in range(2):
                b.far(key_of(request))
                await queue.put(b"data: x\n\n")
            await queue.put(None)

        task = asyncio.create_task(produce())
        while (event := await queue.get()) is not None:
            b.far(key_of(request))
            await response.write(event)
        await task
        return response

    call_twice(b, app_with(show))


@boundary("aiohttp.web middleware that answers for an exception, next request is clean")
def handled(b: Program) -> None:
    from aiohttp import web

    @web.middleware
    async def catching(request, handler):
        try:
            return await handler(request)
        except KeyError:
            b.far(key_of(request))
            return web.Response(text="sorry")

    async def show(request):
        raise KeyError

    call_twice(b, app_with(show, middlewares=[catching]))


@boundary("aiohttp.web background task of cleanup_ctx, begun before any request", expect="own root")
def cleanup_context(b: Program) -> None:
    from aiohttp import web

    ticks = []

    async def show(request):
        ticks.append(key_of(request))
        return web.Response(text="done")

    async def ticking():
        done = 0
        while True:
            await asyncio.sleep(0.005)
            while done < len(ticks):
                b.far()
                done += 1

    async def background(app):
        task = asyncio.create_task(ticking())
        yield
        await asyncio.sleep(0.05)
        task.cancel()

    app = app_with(show)
    app.cleanup_ctx.append(background)
    call_twice(b, app)
