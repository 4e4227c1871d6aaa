"""Service call: HTTP clients. What programs do with aiohttp beyond a plain call."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import extract

from tests.boundaries import Program, boundary
from tests.boundaries.http_service import failures, service

CONTRIB = ["opentelemetry.instrumentation.aiohttp_client:AioHttpClientInstrumentor"]


@boundary("aiohttp: trace_configs of the program's own")
async def trace_configs(b: Program) -> None:
    seen = []

    async def on_start(_: Any, __: Any, parameters: Any) -> None:
        parameters.headers["X-Own"] = "1"
        seen.append(trace.get_current_span())

    config = aiohttp.TraceConfig()
    config.on_request_start.append(on_start)
    with service(b) as url:
        async with aiohttp.ClientSession(trace_configs=[config], headers={"X-Session": "1"}) as session:
            for key in "ab":
                with b.near(key) as near:
                    (await session.get(f"{url}/{key}")).release()
                if os.environ["BOUNDARY_MODE"] == "tracefill":
                    assert seen[-1] is near


@boundary("aiohttp: raise_for_status, timeouts, answers that never come")
async def failing(b: Program) -> None:
    with service(b) as url:
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            with b.near("a"):
                with contextlib.suppress(aiohttp.ClientResponseError):
                    await session.get(f"{url}/flaky/a")
                (await session.get(f"{url}/flaky/a")).release()
            with b.near("b"), contextlib.suppress(asyncio.TimeoutError):
                await session.get(f"{url}/late/b", timeout=aiohttp.ClientTimeout(total=0.2))
            with b.near("c"), contextlib.suppress(aiohttp.ClientError):
                await session.get(f"{url}/drop/c")
            with b.near("d"), contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(session.get(f"{url}/late/d"), 0.2)
            b.clean("after a request was cancelled")
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        assert failures()[0] == "503"
        assert len(failures()) >= 3, failures()


@boundary("aiohttp: bodies that are streamed, headers of the caller's, tasks that outlive the span")
async def streaming(b: Program) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0)
        yield b"b"

    stale = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    with service(b) as url:
        async with aiohttp.ClientSession() as session:
            with b.near("a"):
                response = await session.get(f"{url}/stream/a", headers=stale)
            assert list(stale) == ["traceparent"]
            async for _ in response.content.iter_any():
                b.clean("between pieces of the body")
            with b.near("b"):
                (await session.post(f"{url}/b", data=body())).release()
            with b.near("c"):
                (await session.get(f"{url}/away/c")).release()
            with b.near("d"):
                tasks = [asyncio.ensure_future(session.get(f"{url}/d")) for _ in range(3)]
            for response in await asyncio.gather(*tasks):
                response.release()


@boundary("aiohttp: middlewares that try again, ask first, answer a password prompt")
async def middlewares(b: Program) -> None:
    async def again(request: Any, handler: Any) -> Any:
        response = await handler(request)
        return await handler(request) if response.status == 503 else response

    async def ask_first(request: Any, handler: Any) -> Any:
        first = f"{url}/{str(request.url)[-1]}"
        async with request.session.get(first, middlewares=()) as response, other.get(first):
            await response.read()
        return await handler(request)

    with service(b) as url:
        other = aiohttp.ClientSession()
        async with other, aiohttp.ClientSession(middlewares=[again]) as session:
            for key in "ab":
                with b.near(key):
                    assert (await session.get(f"{url}/flaky/{key}")).status == 200
        other = aiohttp.ClientSession()
        digest = aiohttp.DigestAuthMiddleware("me", "x")
        async with other, aiohttp.ClientSession(middlewares=[ask_first, digest]) as session:
            for key in "cd":
                with b.near(key):
                    assert (await session.get(f"{url}/auth/{key}")).status == 200


@boundary("aiohttp: the handshake of a websocket")
async def websocket(b: Program) -> None:
    async def serve(request: web.Request) -> web.WebSocketResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        token = otel_context.attach(extract(headers, otel_context.Context()))
        b.far(request.match_info["key"])
        otel_context.detach(token)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/{key}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        for key in "ab":
            with b.near(key):
                async with session.ws_connect(f"/{key}") as socket:
                    await socket.receive()
    await runner.cleanup()


@boundary("aiohttp: a session that a task has made, used by a worker that is older than the work")
async def worker(b: Program) -> None:
    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))

    async def forever() -> None:
        while True:
            async with session.get(await work.get()) as response:
                await response.read()
            work.task_done()

    work: asyncio.Queue[str] = asyncio.Queue()
    with service(b) as url:
        with b.near("a"):
            session = await asyncio.create_task(make())
            (await session.get(f"{url}/a")).release()
        task = asyncio.create_task(forever())
        for key in "bc":
            with b.near(key):
                await work.put(f"{url}/{key}")
        await work.join()
        task.cancel()
        await session.close()
