"""A gRPC service of bytes, sync or aio: its handlers are given by arity, `UU`, `US`, `SU` and `SS`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio

_FACTORIES = {
    "UU": grpc.unary_unary_rpc_method_handler,
    "US": grpc.unary_stream_rpc_method_handler,
    "SU": grpc.stream_unary_rpc_method_handler,
    "SS": grpc.stream_stream_rpc_method_handler,
}
_CALLABLES = {"UU": "unary_unary", "US": "unary_stream", "SU": "stream_unary", "SS": "stream_stream"}


def service(handlers: dict[str, Callable[..., Any]]) -> Any:
    return grpc.method_handlers_generic_handler(
        "t.S", {name: _FACTORIES[name[:2]](handler) for name, handler in handlers.items()}
    )


@contextlib.contextmanager
def served(handlers: dict[str, Callable[..., Any]], **options: Any) -> Iterator[str]:
    """A sync server's address."""
    server = grpc.server(futures.ThreadPoolExecutor(4), **options)
    server.add_generic_rpc_handlers((service(handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.asynccontextmanager
async def aio_served(handlers: dict[str, Callable[..., Any]], **options: Any) -> AsyncIterator[str]:
    """An aio server's address."""
    server = grpc.aio.server(migration_thread_pool=futures.ThreadPoolExecutor(2), **options)
    server.add_generic_rpc_handlers((service(handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await asyncio.sleep(0)


def stub(channel: Any, name: str) -> Any:
    """The channel's callable for the handler of this name."""
    return getattr(channel, _CALLABLES[name[:2]])(f"/t.S/{name}")
