"""Service call: gRPC."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
from grpc import insecure_channel as channel_imported_before
from grpc import server as server_imported_before

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.grpc:GrpcInstrumentorClient",
    "opentelemetry.instrumentation.grpc:GrpcInstrumentorServer",
    "opentelemetry.instrumentation.grpc:GrpcAioInstrumentorClient",
    "opentelemetry.instrumentation.grpc:GrpcAioInstrumentorServer",
]

FACTORIES = {
    "UU": grpc.unary_unary_rpc_method_handler,
    "US": grpc.unary_stream_rpc_method_handler,
    "SU": grpc.stream_unary_rpc_method_handler,
    "SS": grpc.stream_stream_rpc_method_handler,
}
CALLABLES = {"UU": "unary_unary", "US": "unary_stream", "SU": "stream_unary", "SS": "stream_stream"}


def generic(handlers: dict[str, Callable[..., Any]]) -> Any:
    return grpc.method_handlers_generic_handler("t.S", {name: FACTORIES[name](one) for name, one in handlers.items()})


def stub(channel: Any, name: str) -> Any:
    return getattr(channel, CALLABLES[name])(f"/t.S/{name}")


@contextlib.contextmanager
def served(make: Callable[..., Any] = grpc.server, *, interceptors: Any = (), **handlers: Any) -> Iterator[str]:
    server = make(futures.ThreadPoolExecutor(4), interceptors=interceptors)
    server.add_generic_rpc_handlers((generic(handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(5).wait()


@contextlib.asynccontextmanager
async def aio_served(*, interceptors: Any = (), **handlers: Any) -> AsyncIterator[str]:
    server = grpc.aio.server(futures.ThreadPoolExecutor(2), interceptors=interceptors)
    server.add_generic_rpc_handlers((generic(handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(5)


def messages(key: str) -> Iterator[bytes]:
    for _ in range(2):
        yield key.encode()


async def messages_async(key: str) -> AsyncIterator[bytes]:
    for _ in range(2):
        yield key.encode()


class Handlers:
    """Sync handlers; each message says whose far span is to be done."""

    def __init__(self, b: Program) -> None:
        self.b = b

    def UU(self, request: bytes, context: Any) -> bytes:
        self.b.far(request.decode())
        return request

    def US(self, request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(3):
            with self.b.span("step"):
                yield request
                self.b.far(request.decode())

    def SU(self, requests: Any, context: Any) -> bytes:
        for request in requests:
            self.b.far(request.decode())
        return b""

    def SS(self, requests: Any, context: Any) -> Iterator[bytes]:
        for request in requests:
            self.b.far(request.decode())
            yield request


@boundary("gRPC sync unary-unary")
def unary_unary(b: Program) -> None:
    with served(UU=Handlers(b).UU) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode(), metadata=(("k", "1"), ("k", "2")))


@boundary("gRPC names imported before, with_call")
def imported_before(b: Program) -> None:
    with served(server_imported_before, UU=Handlers(b).UU) as address, channel_imported_before(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU").with_call(key.encode())


@boundary("gRPC sync unary-stream")
def unary_stream(b: Program) -> None:
    with served(US=Handlers(b).US) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                list(stub(channel, "US")(key.encode()))


@boundary("gRPC sync stream-unary")
def stream_unary(b: Program) -> None:
    with served(SU=Handlers(b).SU) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "SU")(messages(key))


@boundary("gRPC sync stream-stream (bidi)")
def stream_stream(b: Program) -> None:
    with served(SS=Handlers(b).SS) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                list(stub(channel, "SS")(messages(key)))


@boundary("gRPC spans of the request iterator")
def request_iterator(b: Program) -> None:
    def requests(key: str) -> Iterator[bytes]:
        for _ in range(2):
            b.far(key)
            yield b"x"

    with (
        served(SS=lambda requests, _: iter(list(requests))) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                list(stub(channel, "SS")(requests(key)))


@boundary("gRPC future.add_done_callback", expect="direct")
def future_callback(b: Program) -> None:
    go = threading.Event()

    def wait(request: bytes, _: Any) -> bytes:
        go.wait(30)
        return request

    with served(UU=wait) as address, grpc.insecure_channel(address) as channel:
        done = []
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "UU").future(b"x")
                done.append(threading.Event())
                answer.add_done_callback(lambda _, key=key, event=done[-1]: (b.far(key), event.set()))
        go.set()
        for event in done:
            event.wait(30)


@boundary("gRPC unary .future(): server side")
def future_server(b: Program) -> None:
    with served(UU=Handlers(b).UU) as address, grpc.insecure_channel(address) as channel:
        answers = []
        for key in "ab":
            with b.near(key):
                answers.append(stub(channel, "UU").future(key.encode()))
        for answer in answers:
            answer.result()


@boundary("gRPC unary-stream consumed after the span")
def stream_after(b: Program) -> None:
    with served(US=Handlers(b).US) as address, grpc.insecure_channel(address) as channel:
        answers = []
        for key in "ab":
            with b.near(key):
                answers.append(stub(channel, "US")(key.encode()))
        for answer in answers:
            for _ in answer:
                b.clean("while a stream is read outside of any span")


@boundary("gRPC unary-stream consumed in another thread")
def stream_thread(b: Program) -> None:
    with served(US=Handlers(b).US) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "US")(key.encode())
                thread = threading.Thread(target=list, args=(answer,))
                thread.start()
                thread.join()


@boundary("gRPC unary-stream abandoned half-way (cancel, forgotten)")
def stream_abandoned(b: Program) -> None:
    with served(US=Handlers(b).US) as address, grpc.insecure_channel(address) as channel:
        with b.near("a"):
            answer = stub(channel, "US")(b"a")
            next(answer)
            next(answer)
            answer.cancel()
        b.clean("after a stream was cancelled")
        with b.near("b"):
            answer = stub(channel, "US")(b"b")
            next(answer)
            next(answer)
            del answer
            gc.collect()
        time.sleep(0.2)


@boundary("gRPC unary-stream: caller's own spans between messages", expect="direct")
def stream_between(b: Program) -> None:
    with (
        served(US=lambda request, _: iter([request] * 3)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                for _ in stub(channel, "US")(b"x"):
                    b.far(key)


@boundary("gRPC interceptor of the user on the server opens a span")
def server_interceptor(b: Program) -> None:
    class Interceptor(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            b.far(dict(details.invocation_metadata)["key"])
            return continuation(details)

    with (
        served(interceptors=[Interceptor()], UU=Handlers(b).UU) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode(), metadata=[("key", key)])


@boundary("gRPC interceptor of the user on the client, that makes its own metadata")
def client_interceptor(b: Program) -> None:
    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return continuation(details._replace(metadata=[("authorization", "x")]), request)

    with served(UU=Handlers(b).UU) as address, grpc.insecure_channel(address) as bare:
        channel = grpc.intercept_channel(bare, Interceptor())
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())


@boundary("gRPC context.add_callback")
def context_callback(b: Program) -> None:
    done = threading.Semaphore(0)

    def handler(request: bytes, context: Any) -> bytes:
        context.add_callback(lambda: (b.far(request.decode()), done.release()))
        return request

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
            done.acquire(timeout=30)


@boundary("gRPC handler hands work to its own pool")
def handler_pool(b: Program) -> None:
    pool = futures.ThreadPoolExecutor(1)

    def handler(request: bytes, context: Any) -> bytes:
        pool.submit(b.far, request.decode()).result()
        return request

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())


@boundary("gRPC two hops, the second from the handler of the first")
def two_hops(b: Program) -> None:
    with served(UU=Handlers(b).UU) as second, grpc.insecure_channel(second) as onward:
        with (
            served(UU=lambda request, _: stub(onward, "UU")(request)) as first,
            grpc.insecure_channel(first) as channel,
        ):
            for key in "ab":
                with b.near(key):
                    stub(channel, "UU")(key.encode())


@boundary("gRPC calls that fail: abort, exception, nobody there")
def failures(b: Program) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        if request == b"a":
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        raise ValueError("no")

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key), contextlib.suppress(grpc.RpcError):
                stub(channel, "UU")(key.encode())
    with contextlib.suppress(grpc.RpcError), grpc.insecure_channel("127.0.0.1:1") as channel:
        stub(channel, "UU")(b"x", timeout=1)
    b.clean("after the failures")


async def call(channel: Any, name: str, key: str) -> None:
    answer = stub(channel, name)(messages_async(key) if name[0] == "S" else key.encode())
    if name[1] == "S":
        async for _ in answer:
            pass
    else:
        await answer


async def both(b: Program, name: str, handler: Any, **options: Any) -> None:
    async with aio_served(**{name: handler}, **options) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                await call(channel, name, key)


@boundary("gRPC aio unary-unary")
async def aio_unary_unary(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0)
        b.far(request.decode())
        return request

    await both(b, "UU", handler)


@boundary("gRPC aio unary-stream")
async def aio_unary_stream(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> Any:
        for _ in range(2):
            with b.span("step"):
                yield request
                b.far(request.decode())

    await both(b, "US", handler)


@boundary("gRPC aio stream-unary")
async def aio_stream_unary(b: Program) -> None:
    async def handler(requests: Any, context: Any) -> bytes:
        async for request in requests:
            b.far(request.decode())
        return b""

    await both(b, "SU", handler)


@boundary("gRPC aio stream-stream")
async def aio_stream_stream(b: Program) -> None:
    async def handler(requests: Any, context: Any) -> Any:
        async for request in requests:
            b.far(request.decode())
            yield request

    await both(b, "SS", handler)


@boundary("gRPC aio stream-stream by context.read and context.write")
async def aio_read_write(b: Program) -> None:
    async def handler(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            b.far(request.decode())
            await context.write(request)

    await both(b, "SS", handler)


@boundary("gRPC aio: sync handler in migration thread pool")
async def aio_sync_handler(b: Program) -> None:
    await both(b, "UU", Handlers(b).UU)


@boundary("gRPC aio: sync streaming handler in migration thread pool")
async def aio_sync_stream(b: Program) -> None:
    await both(b, "US", Handlers(b).US)


@boundary("gRPC aio call.add_done_callback", expect="direct")
async def aio_done_callback(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        return request

    async with aio_served(UU=handler) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "UU")(b"x")
                answer.add_done_callback(lambda _, key=key: b.far(key))
                await answer
                await asyncio.sleep(0.05)


@boundary("gRPC aio interceptor of the user on the server opens a span")
async def aio_server_interceptor(b: Program) -> None:
    class Interceptor(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            b.far(dict(details.invocation_metadata)["key"])
            return await continuation(details)

    async with (
        aio_served(interceptors=[Interceptor()], UU=Handlers(b).UU) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                await stub(channel, "UU")(key.encode(), metadata=(("key", key),))


@boundary("gRPC aio: server started within a request, calls side by side")
async def aio_gather(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.01)
        b.far(request.decode())
        context.add_done_callback(lambda _: b.far(request.decode()))
        return request

    with b.near("starter"):
        server = aio_served(UU=handler)
        address = await server.__aenter__()

    async with grpc.aio.insecure_channel(address) as channel:

        async def one(key: str) -> None:
            with b.near(key):
                await call(channel, "UU", key)

        await asyncio.gather(*(one(key) for key in "abc"))
    await server.__aexit__(None, None, None)


@boundary("gRPC aio stream abandoned half-way")
async def aio_abandoned(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> Any:
        while True:
            b.far(request.decode())
            yield request
            await asyncio.sleep(0.01)

    async with aio_served(US=handler) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "US")(key.encode())
                await answer.read()
                answer.cancel()
            b.clean("after a stream was cancelled")
            await asyncio.sleep(0.1)
