"""Service call: gRPC."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import json
import multiprocessing
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import grpc.experimental
from grpc import insecure_channel as channel_imported_before
from grpc import server as server_imported_before
from opentelemetry import context as otel_context
from opentelemetry import trace

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


# ------------------------------------------------------------------------------- stubs and servers made in other ways


@boundary("gRPC registered methods, as generated code has them")
def registered_methods(b: Program) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers = {name: FACTORIES[name](getattr(Handlers(b), name)) for name in FACTORIES}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    server.add_registered_method_handlers("t.S", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary = channel.unary_unary("/t.S/UU", _registered_method=True)
        streamed = channel.unary_stream("/t.S/US", _registered_method=True)
        for key in "ab":
            with b.near(key):
                unary(key.encode())
                list(streamed(key.encode()))
    server.stop(5).wait()


@boundary("gRPC a handler class of the user's own, that finds its methods itself")
def generic_handler_class(b: Program) -> None:
    class Everything(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            b.far(dict(details.invocation_metadata)["key"])
            return grpc.unary_unary_rpc_method_handler(Handlers(b).UU)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for key in "ab":
            with b.near(key):
                channel.unary_unary(f"/any/{key}")(key.encode(), metadata=[("key", key)])
    server.stop(5).wait()


@boundary("gRPC stubs of grpc.experimental, without a channel")
def simple_stubs(b: Program) -> None:
    with served(UU=Handlers(b).UU, US=Handlers(b).US, SU=Handlers(b).SU) as address:
        for key in "ab":
            with b.near(key):
                grpc.experimental.unary_unary(key.encode(), address, "/t.S/UU", insecure=True)
                list(grpc.experimental.unary_stream(key.encode(), address, "/t.S/US", insecure=True))
                grpc.experimental.stream_unary(messages(key), address, "/t.S/SU", insecure=True)


@boundary("gRPC channel class of the user's own, around a channel")
def own_channel_class(b: Program) -> None:
    class Lazy:
        def __init__(self, target: str) -> None:
            self.target = target
            self.channel: Any = None

        def unary_unary(self, method: str) -> Any:
            self.channel = self.channel or channel_imported_before(self.target)
            return self.channel.unary_unary(method)

    with served(UU=Handlers(b).UU) as address:
        lazy = Lazy(address)
        for key in "ab":
            with b.near(key):
                lazy.unary_unary("/t.S/UU")(key.encode())
        lazy.channel.close()


@boundary("gRPC secure channel with credentials of the call")
def secure_channel(b: Program) -> None:
    class Token(grpc.AuthMetadataPlugin):
        def __call__(self, context: Any, callback: Any) -> None:
            callback((("authorization", "x"),), None)

    credentials = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(), grpc.metadata_call_credentials(Token())
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((generic({"UU": Handlers(b).UU, "US": Handlers(b).US}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    server.start()
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
                list(stub(channel, "US")(key.encode()))
    server.stop(5).wait()


@boundary("gRPC server started within a request, by a pool with one thread, over a unix socket")
def server_started_within(b: Program) -> None:
    path = os.path.join(tempfile.mkdtemp(), "socket")
    with b.near("starter"):
        server = grpc.server(futures.ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((generic({"UU": Handlers(b).UU, "US": Handlers(b).US}),))
        server.add_insecure_port(f"unix:{path}")
        server.start()
    with grpc.insecure_channel(f"unix:{path}") as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
                list(stub(channel, "US")(key.encode()))
    server.stop(5).wait()


@boundary("gRPC handler that leaves its own span attached: the thread's next call does not see it")
def left_attached(b: Program) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        otel_context.attach(trace.set_span_in_context(b.tracer.start_span("left")))
        return request

    def stream(request: bytes, context: Any) -> Iterator[bytes]:
        otel_context.attach(trace.set_span_in_context(b.tracer.start_span("left")))
        yield request

    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((generic({"UU": handler, "US": stream, "SU": Handlers(b).SU}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for key in "ab":
            stub(channel, "UU")(b"x")
            list(stub(channel, "US")(b"x"))
            with b.near(key):
                stub(channel, "SU")(messages(key))
    server.stop(5).wait()


@boundary("gRPC health and reflection services beside the user's")
def health_and_reflection(b: Program) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    class Health(health.HealthServicer):
        def Check(self, request: Any, context: Any) -> Any:
            b.far(request.service)
            return health_pb2.HealthCheckResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    reflection.enable_server_reflection((reflection.SERVICE_NAME,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for key in "ab":
            with b.near(key):
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=key))
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=key))
                next(watch)
                watch.cancel()
    server.stop(5).wait()


# ------------------------------------------------------------------------------------------ calls in other ways


@boundary("gRPC retries by service config: the first attempt fails")
def retries(b: Program) -> None:
    config = {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
    seen: set[bytes] = set()

    def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        if request not in seen:
            seen.add(request)
            context.abort(grpc.StatusCode.UNAVAILABLE, "once more")
        return request

    options = [("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(config))]
    with served(UU=handler) as address, grpc.insecure_channel(address, options=options) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())


@boundary("gRPC wait_for_ready and compression, the server comes later")
def wait_for_ready(b: Program) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = grpc.server(futures.ThreadPoolExecutor(2), compression=grpc.Compression.Gzip)
    server.add_generic_rpc_handlers((generic({"UU": Handlers(b).UU}),))

    def start() -> None:
        server.add_insecure_port(address)
        server.start()

    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
    with grpc.insecure_channel(address, options=options, compression=grpc.Compression.Gzip) as channel:
        threading.Timer(0.1, start).start()
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode(), wait_for_ready=True, compression=grpc.Compression.Deflate)
    server.stop(5).wait()


@boundary("gRPC deadline that passes while the handler works on")
def deadline(b: Program) -> None:
    over = threading.Semaphore(0)

    def handler(request: bytes, context: Any) -> bytes:
        while context.is_active():
            time.sleep(0.01)
        b.far(request.decode())
        over.release()
        return request

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key), contextlib.suppress(grpc.RpcError):
                stub(channel, "UU")(key.encode(), timeout=0.2)
            over.acquire(timeout=30)


@boundary("gRPC future that is cancelled")
def future_cancelled(b: Program) -> None:
    begun, over = threading.Semaphore(0), threading.Semaphore(0)

    def handler(request: bytes, context: Any) -> bytes:
        begun.release()
        while context.is_active():
            time.sleep(0.01)
        b.far(request.decode())
        over.release()
        return request

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "UU").future(key.encode())
                begun.acquire(timeout=30)
                answer.cancel()
            over.acquire(timeout=30)
            b.clean("after a future was cancelled")


@boundary("gRPC requests of many threads over one channel")
def many_threads(b: Program) -> None:
    def one(key: str) -> None:
        with b.near(key):
            stub(channel, "UU")(key.encode())
            list(stub(channel, "SS")(messages(key)))

    with (
        served(UU=Handlers(b).UU, SS=Handlers(b).SS) as address,
        grpc.insecure_channel(address) as channel,
        futures.ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(one, "abcdefgh"))


@boundary("gRPC stream that feeds a pool")
def stream_to_pool(b: Program) -> None:
    with (
        served(US=lambda request, _: iter([request] * 3)) as address,
        grpc.insecure_channel(address) as channel,
        futures.ThreadPoolExecutor(2) as pool,
    ):
        for key in "ab":
            with b.near(key):
                list(pool.map(b.far, [answer.decode() for answer in stub(channel, "US")(key.encode())]))


@boundary("gRPC bidi by question and answer, spans of both sides open across messages")
def ping_pong(b: Program) -> None:
    def serve(requests: Any, context: Any) -> Iterator[bytes]:
        for request in requests:
            with b.span("answering"):
                b.far(request.decode())
                yield request

    with served(SS=serve) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
                answers = stub(channel, "SS")(iter(questions.get, None))
                for _ in range(3):
                    with b.span("asking"):
                        questions.put(key.encode())
                        next(answers)
                questions.put(None)
                list(answers)


@boundary("gRPC callback of a future makes the next call")
def callback_calls_on(b: Program) -> None:
    with served(UU=Handlers(b).UU) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            over = threading.Event()
            with b.near(key):

                def on(answer: Any, over: threading.Event = over) -> None:
                    second = stub(channel, "UU").future(answer.result())
                    second.add_done_callback(lambda _: over.set())

                stub(channel, "UU").future(key.encode()).add_done_callback(on)
            over.wait(30)


@boundary("gRPC stream_unary by with_call and future")
def stream_unary_other_ways(b: Program) -> None:
    with served(SU=Handlers(b).SU) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                _, call = stub(channel, "SU").with_call(messages(key), metadata=None)
                assert call.code() is grpc.StatusCode.OK
                stub(channel, "SU").future(messages(key)).result()


@boundary("gRPC three hops, the middle one streams on what it gets")
def three_hops(b: Program) -> None:
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        last = enter(grpc.insecure_channel(enter(served(US=Handlers(b).US))))

        def relay(requests: Any, context: Any) -> Iterator[bytes]:
            for request in requests:
                b.far(request.decode())
                yield from stub(last, "US")(request)

        middle = enter(grpc.insecure_channel(enter(served(SS=relay))))
        first = enter(grpc.insecure_channel(enter(served(UU=lambda r, _: b"".join(stub(middle, "SS")(iter([r, r])))))))
        for key in "ab":
            with b.near(key):
                stub(first, "UU")(key.encode())


@boundary("gRPC server stopped while it streams")
def stopped_while_streaming(b: Program) -> None:
    def endless(request: bytes, context: Any) -> Iterator[bytes]:
        while True:
            b.far(request.decode())
            yield request
            time.sleep(0.01)

    for key in "ab":
        server = grpc.server(futures.ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((generic({"US": endless}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with b.near(key), contextlib.suppress(grpc.RpcError):
                for _ in stub(channel, "US")(key.encode()):
                    server.stop(None)
            b.clean("after the server was stopped")
        server.stop(None).wait()
    time.sleep(0.2)


@boundary("gRPC contrib's own interceptors, added by hand")
def contribs_by_hand(b: Program) -> None:
    from opentelemetry.instrumentation.grpc import client_interceptor, server_interceptor
    from opentelemetry.instrumentation.grpc.grpcext import intercept_channel

    server = server_imported_before(futures.ThreadPoolExecutor(2), interceptors=[server_interceptor()])
    server.add_generic_rpc_handlers((generic({"UU": Handlers(b).UU, "US": Handlers(b).US}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with channel_imported_before(f"127.0.0.1:{port}") as bare:
        channel = intercept_channel(bare, client_interceptor())
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
                list(stub(channel, "US")(key.encode()))
    server.stop(5).wait()


@boundary("gRPC server in a child process, as prefork servers have it")
def server_in_child(b: Program) -> None:
    spawn = multiprocessing.get_context("spawn")
    ports, stop = spawn.Queue(), spawn.Event()
    child = spawn.Process(target=serve_in_child, args=(ports, stop))
    child.start()
    with grpc.insecure_channel(f"127.0.0.1:{ports.get(timeout=60)}") as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
    stop.set()
    child.join(30)


def serve_in_child(ports: Any, stop: Any) -> None:
    with served(UU=Handlers(Program()).UU) as address:
        ports.put(address.rpartition(":")[2])
        stop.wait(60)


@boundary("gRPC client in a process pool")
def client_in_process_pool(b: Program) -> None:
    spawn = multiprocessing.get_context("spawn")
    with served(UU=Handlers(b).UU) as address, futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(call_from_child, address, key).result(60)


def call_from_child(address: str, key: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub(channel, "UU")(key.encode())


@boundary("gRPC handler that cleans up when its reader has gone")
def stream_cleanup(b: Program) -> None:
    over = threading.Semaphore(0)

    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        try:
            with b.span("step"):
                while True:
                    yield request
                    time.sleep(0.01)
        finally:
            b.far(request.decode())
            over.release()

    with served(US=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "US")(key.encode())
                next(answer)
                answer.cancel()
            over.acquire(timeout=30)
        with b.near("c"), contextlib.suppress(grpc.RpcError):
            list(stub(channel, "US")(b"c", timeout=0.2))
        over.acquire(timeout=30)


@boundary("gRPC handler that is no generator, one that cancels its call")
def handlers_of_other_shapes(b: Program) -> None:
    def listed(request: bytes, context: Any) -> Iterator[bytes]:
        b.far(request.decode())
        return iter([request] * 2)

    def cancels(request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("k", "1"),))
        b.far(request.decode())
        context.cancel()
        return request

    with served(US=listed, UU=cancels) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                list(stub(channel, "US")(key.encode()))
                with contextlib.suppress(grpc.RpcError):
                    stub(channel, "UU")(key.encode())


# ------------------------------------------------------------------------------------------- interceptors of the user


class AllFour(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """A client interceptor that does `intercept` in every arity."""

    def __init__(self, intercept: Callable[..., Any]) -> None:
        self.intercept_unary_unary = self.intercept_unary_stream = intercept  # type: ignore[method-assign]
        self.intercept_stream_unary = self.intercept_stream_stream = intercept  # type: ignore[method-assign]


for _name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
    setattr(AllFour, f"intercept_{_name}", lambda *_: None)
AllFour.__abstractmethods__ = frozenset()


@boundary("gRPC client interceptors of the user, two of them, with spans and retries")
def client_interceptors_twice(b: Program) -> None:
    def traced(continuation: Any, details: Any, request: Any) -> Any:
        with b.span("intercepted"):
            return continuation(details, request)

    def twice(continuation: Any, details: Any, request: Any) -> Any:
        continuation(details, request)
        return continuation(details._replace(timeout=30), request)

    with (
        served(UU=Handlers(b).UU, US=Handlers(b).US) as address,
        grpc.insecure_channel(address) as bare,
    ):
        channel = grpc.intercept_channel(grpc.intercept_channel(bare, AllFour(twice)), AllFour(traced))
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
                stub(channel, "UU").future(key.encode()).result()
                list(stub(channel, "US")(key.encode()))


@boundary("gRPC client interceptor that wraps the answers in a generator")
def client_interceptor_generator(b: Program) -> None:
    def wrapped(continuation: Any, details: Any, request: Any) -> Any:
        def answers() -> Iterator[bytes]:
            for answer in continuation(details, request):
                with b.span("wrapped"):
                    yield answer

        return answers()

    with served(US=Handlers(b).US) as address, grpc.insecure_channel(address) as bare:
        channel = grpc.intercept_channel(bare, AllFour(wrapped))
        for key in "ab":
            with b.near(key):
                for _ in stub(channel, "US")(key.encode()):
                    b.far(key)


@boundary("gRPC client interceptor that asks another service first")
def client_interceptor_asks(b: Program) -> None:
    with served(UU=Handlers(b).UU) as address, grpc.insecure_channel(address) as bare:

        def ask(continuation: Any, details: Any, request: Any) -> Any:
            token = stub(bare, "UU")(request)
            return continuation(details._replace(metadata=[("authorization", token.decode())]), request)

        channel = grpc.intercept_channel(bare, AllFour(ask))
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())


@boundary("gRPC server interceptor of the user that wraps the handler")
def server_interceptor_wraps(b: Program) -> None:
    class Interceptor(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = continuation(details)

            def wrapped(request: bytes, context: Any) -> bytes:
                b.far(request.decode())
                return handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(wrapped)

    with (
        served(interceptors=(Interceptor(), Interceptor()), UU=Handlers(b).UU) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())


@boundary("gRPC server interceptor of the user that refuses the call")
def server_interceptor_refuses(b: Program) -> None:
    class Interceptor(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            def refuse(request: bytes, context: Any) -> None:
                b.far(dict(details.invocation_metadata)["key"])
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

            return grpc.unary_unary_rpc_method_handler(refuse)

    with (
        served(interceptors=[Interceptor()], UU=Handlers(b).UU) as address,
        grpc.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key), contextlib.suppress(grpc.RpcError):
                stub(channel, "UU")(key.encode(), metadata=[("key", key)])


# ------------------------------------------------------------------------------------------ handlers that hand work on


@boundary("gRPC handler starts a thread and does not wait for it", expect="later")
def handler_thread(b: Program) -> None:
    threads = []

    def handler(request: bytes, context: Any) -> bytes:
        threads.append(threading.Thread(target=lambda: (time.sleep(0.1), b.far(request.decode()))))
        threads[-1].start()
        return request

    with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                stub(channel, "UU")(key.encode())
    for thread in threads:
        thread.join()


@boundary("gRPC handler streams what a thread of its own puts in a queue")
def handler_queue(b: Program) -> None:
    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        answers: queue.Queue[bytes | None] = queue.Queue()

        def work() -> None:
            for _ in range(2):
                b.far(request.decode())
                answers.put(request)
            answers.put(None)

        thread = threading.Thread(target=work)
        thread.start()
        while (answer := answers.get()) is not None:
            b.far(request.decode())
            yield answer
        thread.join()

    with served(US=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                list(stub(channel, "US")(key.encode()))


@boundary("gRPC handler that is non-blocking and sends by a callback, from a thread")
def non_blocking(b: Program) -> None:
    def handler(request: bytes, context: Any, send: Callable[[Any], None]) -> None:
        def work() -> None:
            for _ in range(2):
                time.sleep(0.02)
                b.far(request.decode())
                send(request)
            send(None)

        threading.Thread(target=work).start()

    handler.experimental_non_blocking = True  # type: ignore[attr-defined]
    with served(US=handler) as address, grpc.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                list(stub(channel, "US")(key.encode()))


@boundary("gRPC handler has a pool of its own")
def own_thread_pool(b: Program) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        assert "own" in threading.current_thread().name
        b.far(request.decode())
        return request

    with futures.ThreadPoolExecutor(1, "own") as pool:
        pool.submit(int)
        handler.experimental_thread_pool = pool  # type: ignore[attr-defined]
        with served(UU=handler) as address, grpc.insecure_channel(address) as channel:
            for key in "ab":
                with b.near(key):
                    stub(channel, "UU")(key.encode())


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


# --------------------------------------------------------------------------------------- aio: calls in other ways


async def aio_answer(request: bytes, context: Any) -> bytes:
    return request


@boundary("gRPC aio registered methods, as generated code has them")
async def aio_registered_methods(b: Program) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        return request

    server = grpc.aio.server()
    server.add_registered_method_handlers("t.S", {"UU": grpc.unary_unary_rpc_method_handler(unary)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call_it = channel.unary_unary("/t.S/UU", _registered_method=True)
        for key in "ab":
            with b.near(key):
                await call_it(key.encode())
    await server.stop(5)


@boundary("gRPC aio secure channel, metadata of its own kind")
async def aio_secure(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        assert [value for name, value in context.invocation_metadata() if name == "k"] == ["1", "2"]
        b.far(request.decode())
        return request

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((generic({"UU": handler}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    await server.start()
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.local_channel_credentials()) as channel:
        for key in "ab":
            with b.near(key):
                await stub(channel, "UU")(key.encode(), metadata=grpc.aio.Metadata(("k", "1"), ("k", "2")))
    await server.stop(5)


@boundary("gRPC aio client that reads and writes side by side")
async def aio_client_read_write(b: Program) -> None:
    async def handler(requests: Any, context: Any) -> Any:
        async for request in requests:
            b.far(request.decode())
            yield request

    async with aio_served(SS=handler) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                talk = stub(channel, "SS")()

                async def write(talk: Any = talk, key: str = key) -> None:
                    for _ in range(3):
                        await talk.write(key.encode())
                    await talk.done_writing()

                writing = asyncio.create_task(write())
                while await talk.read() is not grpc.aio.EOF:
                    b.far(key)
                await writing


@boundary("gRPC aio calls begun in the span and awaited after it")
async def aio_awaited_after(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        return request

    async def stream(request: bytes, context: Any) -> Any:
        for _ in range(2):
            b.far(request.decode())
            yield request

    async with aio_served(UU=handler, US=stream) as address, grpc.aio.insecure_channel(address) as channel:
        answers = []
        for key in "ab":
            with b.near(key):
                answers.append((stub(channel, "UU")(key.encode()), stub(channel, "US")(key.encode())))
        for unary, streamed in answers:
            await unary
            async for _ in streamed:
                b.clean("while a stream is read outside of any span")


@boundary("gRPC aio call that times out in asyncio.wait_for")
async def aio_wait_for(b: Program) -> None:
    over = asyncio.Semaphore(0)

    async def handler(request: bytes, context: Any) -> bytes:
        try:
            await asyncio.sleep(30)
        finally:
            b.far(request.decode())
            over.release()
        return request

    async with aio_served(UU=handler) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key), contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stub(channel, "UU")(key.encode()), 0.2)
            await over.acquire()
            b.clean("after the call has timed out")


@boundary("gRPC aio deadline that passes, task that is cancelled")
async def aio_deadline(b: Program) -> None:
    over, begun = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def handler(request: bytes, context: Any) -> Any:
        begun.release()
        try:
            yield request
            await asyncio.sleep(30)
        finally:
            b.far(request.decode())
            over.release()

    async with aio_served(US=handler) as address, grpc.aio.insecure_channel(address) as channel:
        with b.near("a"), contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stub(channel, "US")(b"a", timeout=0.3):
                pass
        await over.acquire()
        with b.near("b"):

            async def read() -> None:
                async for _ in stub(channel, "US")(b"b"):
                    pass

            task = asyncio.create_task(read())
            for _ in range(2):
                await begun.acquire()
            task.cancel()
            await asyncio.wait([task])
        await over.acquire()


@boundary("gRPC aio stream that is left by break and forgotten, the channel with it")
async def aio_forgotten(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> Any:
        while True:
            b.far(request.decode())
            yield request
            await asyncio.sleep(0.01)

    async with aio_served(US=handler) as address:
        for key in "ab":
            with b.near(key):
                async with grpc.aio.insecure_channel(address) as channel:
                    async for _ in stub(channel, "US")(key.encode()):
                        break
            b.clean("after a stream was forgotten")
        await asyncio.sleep(0.1)


@boundary("gRPC aio calls that fail: abort, exception, no such method")
async def aio_failures(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        if request == b"a":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no")
        raise ValueError("no")

    async def stream(request: bytes, context: Any) -> Any:
        yield request
        await handler(request, context)

    async with aio_served(UU=handler, US=stream) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                for name in ("UU", "US", "SS"):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await call(channel, name, key)


@boundary("gRPC aio client interceptors of the user: other metadata, a span, a second attempt")
async def aio_client_interceptors(b: Program) -> None:
    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            with b.span("intercepted"):
                await continuation(details, request)
                return await continuation(details._replace(metadata=grpc.aio.Metadata(("k", "1"))), request)

    class Stream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            answers = await continuation(details._replace(metadata=grpc.aio.Metadata()), request)

            async def wrapped() -> AsyncIterator[bytes]:
                async for answer in answers:
                    b.far(answer.decode())
                    yield answer

            return wrapped()

    async def unary(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        return request

    async def stream(request: bytes, context: Any) -> Any:
        b.far(request.decode())
        yield request

    async with (
        aio_served(UU=unary, US=stream) as address,
        grpc.aio.insecure_channel(address, interceptors=[Unary(), Stream(), Unary()]) as channel,
    ):
        for key in "ab":
            with b.near(key):
                await call(channel, "UU", key)
                await call(channel, "US", key)


@boundary("gRPC aio client interceptor that asks another service first")
async def aio_client_interceptor_asks(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        return request

    async with aio_served(UU=handler) as address, grpc.aio.insecure_channel(address) as plain:

        class Ask(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
                token = await stub(plain, "UU")(request)
                details.metadata.add("authorization", token.decode())
                return await continuation(details, request)

        async with grpc.aio.insecure_channel(address, interceptors=[Ask()]) as channel:
            for key in "ab":
                with b.near(key):
                    await call(channel, "UU", key)


# ------------------------------------------------------------------------------------- aio: handlers that hand work on


@boundary("gRPC aio responses written by a task in the background")
async def aio_background_writer(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> None:
        async def work() -> None:
            for _ in range(2):
                b.far(request.decode())
                await context.write(request)

        await asyncio.create_task(work())
        b.far(request.decode())

    await both(b, "US", handler)


@boundary("gRPC aio responses from a queue that a task fills")
async def aio_background_queue(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> Any:
        answers: asyncio.Queue[bytes | None] = asyncio.Queue(1)

        async def work() -> None:
            for _ in range(3):
                b.far(request.decode())
                await answers.put(request)
            await answers.put(None)

        task = asyncio.create_task(work())
        while (answer := await answers.get()) is not None:
            b.far(request.decode())
            yield answer
        await task

    await both(b, "US", handler)


@boundary("gRPC aio handler leaves a task behind, and a thread", expect="later")
async def aio_left_behind(b: Program) -> None:
    left: list[Any] = []

    async def handler(request: bytes, context: Any) -> bytes:
        async def later() -> None:
            await asyncio.sleep(0.05)
            b.far(request.decode())

        left.append(asyncio.create_task(later()))
        left.append(asyncio.get_running_loop().run_in_executor(None, b.far, request.decode()))
        return request

    await both(b, "UU", handler)
    await asyncio.gather(*left)


@boundary("gRPC aio handler asks a sync client, in a thread")
async def aio_sync_client(b: Program) -> None:
    with served(UU=Handlers(b).UU) as second, grpc.insecure_channel(second) as onward:

        async def handler(request: bytes, context: Any) -> bytes:
            b.far(request.decode())
            return await asyncio.to_thread(stub(onward, "UU"), request)

        await both(b, "UU", handler)


@boundary("gRPC aio three hops, streams between")
async def aio_three_hops(b: Program) -> None:
    async def last(request: bytes, context: Any) -> Any:
        for _ in range(2):
            b.far(request.decode())
            yield request

    async with aio_served(US=last) as third, grpc.aio.insecure_channel(third) as to_third:

        async def middle(requests: Any, context: Any) -> Any:
            async for request in requests:
                async for answer in stub(to_third, "US")(request):
                    b.far(request.decode())
                    yield answer

        async with aio_served(SS=middle) as second, grpc.aio.insecure_channel(second) as to_second:

            async def first(request: bytes, context: Any) -> bytes:
                return b"".join([answer async for answer in stub(to_second, "SS")(iter([request, request]))])

            await both(b, "UU", first)


@boundary("gRPC aio server interceptor of the user that wraps the handler, with a contextvar")
async def aio_server_interceptor_wraps(b: Program) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")

    class Interceptor(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            who.set(dict(details.invocation_metadata)["key"])
            handler = await continuation(details)

            async def wrapped(request: bytes, context: Any) -> Any:
                b.far(who.get())
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(wrapped)

    async def handler(request: bytes, context: Any) -> bytes:
        b.far(who.get())
        return request

    async with (
        aio_served(interceptors=[Interceptor()], UU=handler) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for key in "ab":
            with b.near(key):
                await stub(channel, "UU")(key.encode(), metadata=(("key", key),))


@boundary("gRPC aio handler that is a callable object, a partial, a lambda")
async def aio_callables(b: Program) -> None:
    class Callable_:
        async def __call__(self, request: bytes, context: Any) -> bytes:
            b.far(request.decode())
            return request

        async def method(self, prefix: str, request: bytes, context: Any) -> bytes:
            return await self(request, context)

    handlers = {"UU": Callable_().__call__, "SU": functools.partial(Callable_().method, "x")}
    async with aio_served(**handlers) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                await call(channel, "UU", key)


@boundary("gRPC aio client in another thread's loop, sync server")
def aio_client_in_thread(b: Program) -> None:
    async def ask(address: str, key: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await call(channel, "UU", key)
            await call(channel, "SS", key)

    with served(UU=Handlers(b).UU, SS=Handlers(b).SS) as address:
        for key in "ab":
            with b.near(key):
                thread = threading.Thread(target=lambda key=key: asyncio.run(ask(address, key)))
                thread.start()
                thread.join()


@boundary("gRPC aio server stopped while it streams")
async def aio_stopped_while_streaming(b: Program) -> None:
    async def endless(request: bytes, context: Any) -> Any:
        while True:
            b.far(request.decode())
            yield request
            await asyncio.sleep(0.01)

    for key in "ab":
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((generic({"US": endless}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with b.near(key), contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in stub(channel, "US")(key.encode()):
                    stopping = asyncio.create_task(server.stop(None))
            b.clean("after the server was stopped")
            await stopping
    await asyncio.sleep(0.1)


@boundary("gRPC aio requests from a generator with spans of its own, many streams side by side")
async def aio_request_spans(b: Program) -> None:
    async def handler(requests: Any, context: Any) -> Any:
        async for request in requests:
            with b.span("answering"):
                b.far(request.decode())
                yield request

    async def requests(key: str) -> AsyncIterator[bytes]:
        for _ in range(2):
            with b.span("asking"):
                b.far(key)
                yield key.encode()
                await asyncio.sleep(0.01)

    async def answers(channel: Any, key: str) -> AsyncIterator[bytes]:
        async for answer in stub(channel, "SS")(requests(key)):
            yield answer

    async with aio_served(SS=handler) as address, grpc.aio.insecure_channel(address) as channel:

        async def one(key: str) -> None:
            with b.near(key):
                async for _ in answers(channel, key):
                    b.far(key)

        await asyncio.gather(*(one(key) for key in "abcd"))


@boundary("gRPC aio contrib's own interceptors, added by hand")
async def aio_contribs_by_hand(b: Program) -> None:
    from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor

    async def handler(request: bytes, context: Any) -> bytes:
        b.far(request.decode())
        return request

    async def stream(request: bytes, context: Any) -> Any:
        b.far(request.decode())
        yield request

    async with (
        aio_served(interceptors=[aio_server_interceptor()], UU=handler, US=stream) as address,
        grpc.aio.insecure_channel(address, interceptors=aio_client_interceptors()) as channel,
    ):
        for key in "ab":
            with b.near(key):
                await call(channel, "UU", key)
                await call(channel, "US", key)


@boundary("gRPC aio callbacks of a call and of the server's context, made where it has begun", expect="later")
async def aio_callbacks(b: Program) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        async def later() -> None:
            context.add_done_callback(lambda _: b.far(request.decode()))

        await asyncio.create_task(later())
        return request

    async with aio_served(UU=handler) as address, grpc.aio.insecure_channel(address) as channel:
        answers = []
        for key in "ab":
            with b.near(key):
                answer = stub(channel, "UU")(key.encode())
                answer.add_done_callback(lambda _, key=key: b.far(key))
                answers.append(answer)
        for answer in answers:
            await answer
        await asyncio.sleep(0.1)


@boundary("gRPC aio task group of calls, one fails and takes the others with it")
async def aio_taken_along(b: Program) -> None:
    over = asyncio.Semaphore(0)

    async def handler(request: bytes, context: Any) -> bytes:
        if request.startswith(b"!"):
            await asyncio.sleep(0.1)
            await context.abort(grpc.StatusCode.INTERNAL, "no")
        try:
            await asyncio.sleep(30)
        finally:
            b.far(request.decode())
            over.release()
        return request

    async with aio_served(UU=handler) as address, grpc.aio.insecure_channel(address) as channel:
        for key in "ab":
            with b.near(key):
                tasks = [asyncio.create_task(call(channel, "UU", request)) for request in (key, key, f"!{key}")]
                _, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in left:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(2):
                await over.acquire()
            b.clean("after the calls were cancelled")
