"""The aio server: see `tracefill.calls.grpc.server`. Handlers keep their kind, for gRPC asks what they are: coroutines that read
and write by their context, async generators, or plain functions and generators for the thread pool."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

from tracefill.calls.grpc.server import Responses, arrived, end, handler_like, is_contribs
from tracefill.calls.rpc_spans import ServerCall
from tracefill.context import scope
from tracefill.wrapping import Patches

__all__ = ["AioServerInterceptor", "wrap_all"]

# The call whose handler runs: gRPC's own context of it is a C object, and remembers nothing for us.
_serving: contextvars.ContextVar[ServerCall | None] = contextvars.ContextVar("tracefill_grpc_serving", default=None)

_INTERCEPTORS = 2  # thread_pool, generic_handlers, interceptors, ...


def wrap_all(patches: Patches) -> None:
    patches.wrap(_server.Server, "__init__", _init)
    patches.wrap(cygrpc._ServicerContext, "add_done_callback", _add_done_callback)


def _init(original: Any) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > _INTERCEPTORS:
            args = (*args[:_INTERCEPTORS], _ours_first(args[_INTERCEPTORS]), *args[_INTERCEPTORS + 1 :])
        else:
            kwargs["interceptors"] = _ours_first(kwargs.get("interceptors"))
        original(self, *args, **kwargs)

    return init


def _ours_first(interceptors: Any) -> tuple[Any, ...]:
    given: tuple[Any, ...] = tuple(interceptors or ())
    theirs = [interceptor for interceptor in given if is_contribs(interceptor)]
    others = tuple(interceptor for interceptor in given if interceptor not in theirs)
    if any(type(interceptor) is AioServerInterceptor for interceptor in others):
        return others
    return (AioServerInterceptor(theirs[0]._filter if theirs else None), *others)


def _add_done_callback(original: Any) -> Callable[..., None]:
    def add_done_callback(self: Any, callback: Any) -> None:
        rpc = _serving.get()
        original(self, callback if rpc is None else rpc.hold(callback))

    return add_done_callback


class AioServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.aio.server(interceptors=[AioServerInterceptor()])`; the first, so that the others see its span.

    `is_traced(handler_call_details)`: False for a call that is to have no span; its caller's is current.
    """

    def __init__(self, is_traced: Callable[[Any], bool] | None = None) -> None:
        self._is_traced = is_traced

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        rpc = arrived(handler_call_details, self._is_traced)
        if rpc is None:
            return await continuation(handler_call_details)
        try:
            with scope(rpc.inside):
                handler = await continuation(handler_call_details)
        except BaseException as error:
            rpc.end("UNKNOWN", error=error)
            raise
        if handler is None:
            rpc.end("UNIMPLEMENTED", "Method not found!")
            return None
        return handler_like(handler, _streamed if handler.response_streaming else _unary, rpc)


def _unary(behavior: Any, rpc: ServerCall) -> Any:
    return _coroutine(behavior, rpc) if inspect.iscoroutinefunction(behavior) else _function(behavior, rpc)


def _streamed(behavior: Any, rpc: ServerCall) -> Any:
    if inspect.iscoroutinefunction(behavior):
        return _coroutine(behavior, rpc)
    if inspect.isasyncgenfunction(behavior):
        return _async_generator(behavior, rpc)

    def serve(request: Any, context: Any) -> Any:
        status = _SyncContext(rpc, context)
        _end_with_task(rpc, status)
        return Responses(rpc, status, behavior, request, status)

    return serve


def _end_with_task(rpc: ServerCall, context: Any) -> None:
    """Where the caller is gone, gRPC's thread waits for ever to hand over the next response: nobody ends the handler."""
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: end(rpc, context, gone=True))


def _coroutine(behavior: Any, rpc: ServerCall) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        with scope(rpc.inside), _Ending(rpc, context):
            return await behavior(request, context)

    return serve


def _async_generator(behavior: Any, rpc: ServerCall) -> Any:
    # The task is the call's own: what stays attached between two responses is seen by nobody else.
    async def serve(request: Any, context: Any) -> AsyncIterator[Any]:
        with scope(rpc.inside), _Ending(rpc, context):
            responses = behavior(request, context)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

    return serve


def _function(behavior: Any, rpc: ServerCall) -> Any:
    def serve(request: Any, context: Any) -> Any:
        status = _SyncContext(rpc, context)
        with scope(rpc.inside), _Ending(rpc, status):
            return behavior(request, status)

    return serve


class _Ending:
    """Ends the span with whatever ends the handler."""

    def __init__(self, rpc: ServerCall, context: Any) -> None:
        self._rpc = rpc
        self._context = context

    def __enter__(self) -> None:
        self._token = _serving.set(self._rpc)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if _serving.get() is self._rpc:  # a generator may be closed by another task
            _serving.set(self._token.old_value if self._token.old_value is not contextvars.Token.MISSING else None)
        gone = isinstance(error, (asyncio.CancelledError, GeneratorExit))
        end(self._rpc, self._context, None if gone else error, gone=gone)


class _SyncContext:
    """What a plain function gets for its context: that of gRPC, which tells nobody the status, and remembers none of the caller's
    context for callbacks."""

    def __init__(self, rpc: ServerCall, context: Any) -> None:
        self._rpc = rpc
        self._context = context
        self._code: Any = None
        self._details: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def code(self) -> Any:
        return self._code

    def details(self) -> str | None:
        return self._details

    def set_code(self, code: Any) -> None:
        self._context.set_code(code)
        self._code = code

    def set_details(self, details: str) -> None:
        self._context.set_details(details)
        self._details = details

    def abort(self, code: Any, details: str = "", *rest: Any, **others: Any) -> None:
        self._code, self._details = code, details
        self._context.abort(code, details, *rest, **others)

    def add_callback(self, callback: Any) -> Any:
        return self._context.add_callback(self._rpc.hold(callback))
