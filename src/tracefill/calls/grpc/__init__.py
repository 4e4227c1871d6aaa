"""gRPC (grpcio 1.60 and later), sync and aio, clients and servers, all four arities.

    tracefill.install(only=["grpc"])        # channels, stubs and sync servers that exist already are traced too

A client span lasts until the status has come; while a stream is read the caller's own span is current. A server span is current
in the server's other interceptors, in the handler, in each step of a streamed response and in the callbacks of its context.
With contrib's instrumentation switched on there is still one span for each side, and what contrib breaks works.
A method that is excluded or filtered out has no span, and belongs to its caller all the same.

With TRACEFILL_GRPC_TRACE_BIN=1, or by an interceptor with `trace_bin=True`, `grpc-trace-bin` is sent beside `traceparent`.
`extract(metadata)` reads both; grpcio's own servers are shown no `grpc-trace-bin`, for the core below them keeps that to itself.

Without install():

    channel = grpc.intercept_channel(channel, ClientInterceptor())
    server = grpc.server(pool, interceptors=[ServerInterceptor()])
    grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors())
    grpc.aio.server(interceptors=[AioServerInterceptor()])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracefill.calls.rpc_contrib import step_aside, step_back
from tracefill.calls.rpc_spans import metadata_context as extract
from tracefill.calls.rpc_spans import switch
from tracefill.context import inject, scope
from tracefill.wrapping import Patches

if TYPE_CHECKING:
    from tracefill.calls.grpc.aio_client import aio_client_interceptors
    from tracefill.calls.grpc.aio_server import AioServerInterceptor
    from tracefill.calls.grpc.client import ClientInterceptor
    from tracefill.calls.grpc.server import ServerInterceptor

__all__ = [
    "LIBRARIES",
    "AioServerInterceptor",
    "ClientInterceptor",
    "ServerInterceptor",
    "aio_client_interceptors",
    "extract",
    "inject",
    "patch",
    "scope",
    "unpatch",
]

LIBRARIES = ("grpc",)

_HOMES = {
    "ClientInterceptor": "client",
    "ServerInterceptor": "server",
    "AioServerInterceptor": "aio_server",
    "aio_client_interceptors": "aio_client",
}
_patches = Patches()


def patch() -> None:
    from tracefill.calls.grpc import aio_client, aio_server, client, server

    for side in (client, server, aio_client, aio_server):
        side.wrap_all(_patches)
    step_aside()
    switch(True)


def unpatch() -> None:
    switch(False)
    step_back()
    _patches.undo()


def __getattr__(name: str) -> Any:
    # The interceptors inherit from grpc's classes; nobody who does without grpc is to import it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
