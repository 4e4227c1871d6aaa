"""The aio client: see `tracefill.calls.grpc.client`. A span for each call that is sent, inside of the user's interceptors: whatever
metadata they make, ours is added to it."""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import grpc
from grpc.aio import _call, _channel, _interceptor

from tracefill.calls.grpc.server import is_contribs
from tracefill.calls.rpc_contrib import step_aside
from tracefill.calls.rpc_spans import WRITES_BINARY, ClientCall, begin_client, is_on
from tracefill.snapshots import bind
from tracefill.wrapping import Patches

__all__ = ["aio_client_interceptors", "wrap_all"]

_TARGET = "_tracefill_target"


class _Asked(NamedTuple):
    """What the user has called, known to the calls that his interceptors make of it."""

    target: str = ""
    contribs: Any = None
    is_traced: bool = True


_asked: contextvars.ContextVar[_Asked | None] = contextvars.ContextVar("tracefill_grpc_asked", default=None)


def wrap_all(patches: Patches) -> None:
    """What channels and stubs are made of, so that those which exist already are traced too."""
    patches.wrap(_channel.Channel, "__init__", _remember_target)
    for name in ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"):
        patches.wrap(getattr(_channel, f"{name}MultiCallable"), "__call__", _ask)
        patches.wrap(getattr(_call, f"{name}Call"), "__init__", _send)
    # gRPC runs callbacks in the context of the call.
    for kind in (_call.Call, _interceptor.InterceptedCall):
        patches.wrap(kind, "add_done_callback", _with_bound_callback)


def _remember_target(original: Any) -> Callable[..., None]:
    def init(self: Any, target: str, *args: Any, **kwargs: Any) -> None:
        original(self, target, *args, **kwargs)
        setattr(self, _TARGET, target)

    return init


def _ask(original: Any) -> Callable[..., Any]:
    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _asked.set(_what_is_asked(self, kwargs.get("timeout")))
        try:
            return original(self, *args, **kwargs)
        finally:
            _asked.reset(token)

    return ask


def _what_is_asked(callable_: Any, timeout: float | None) -> _Asked:
    target = getattr(getattr(callable_, "_python_channel", None), _TARGET, "")
    theirs = next((one for one in callable_._interceptors or () if is_contribs(one)), None)
    if theirs is None:
        return _Asked(target)
    step_aside()
    details = grpc.aio.ClientCallDetails(callable_._method, timeout, None, None, None)
    return _Asked(target, theirs, theirs._filter is None or bool(theirs._filter(details)))


def _send(original: Any) -> Callable[..., None]:
    def init(
        self: Any,
        request: Any,
        deadline: Any,
        metadata: Any,
        credentials: Any,
        wait: Any,
        channel: Any,
        method: Any,
        *rest: Any,
    ) -> None:
        asked = _asked.get() or _Asked()
        rpc = begin_client(method, asked.target, request, asked.contribs, is_traced=asked.is_traced)
        if rpc is not None:
            metadata = rpc.metadata(metadata)
        try:
            original(self, request, deadline, metadata, credentials, wait, channel, method, *rest)
        except BaseException as error:
            if rpc is not None:
                rpc.fail(error)
            raise
        if rpc is not None:
            _end_with(self, rpc)

    return init


def _end_with(answer: Any, rpc: ClientCall) -> None:
    """Ends the call with its answer, without keeping that alive: one that is forgotten cancels itself."""
    held = weakref.ref(answer)

    def over() -> None:
        answer = held()
        code = None if answer is None else _at_once(answer.code())
        rpc.end("CANCELLED" if code is None else code.name, None if answer is None else _at_once(answer.details()))

    answer._cython_call.add_done_callback(over)


def _with_bound_callback(original: Any) -> Callable[..., Any]:
    def add(self: Any, callback: Any) -> Any:
        return original(self, bind(callback) if callable(callback) else callback)

    return add


def _ends(rpc: ClientCall) -> Callable[[Any], None]:
    def over(answer: Any) -> None:
        code = _at_once(answer.code())
        rpc.end("CANCELLED" if code is None else code.name, _at_once(answer.details()))

    return over


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for any more; None when it would wait, or fails."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    except BaseException:  # a call that was cancelled before it had a status
        return None
    coroutine.close()
    return None


class _Interceptor:
    def __init__(self, target: str = "", trace_bin: bool = False) -> None:
        self._target = target
        self._trace_bin = trace_bin

    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        if self._trace_bin:
            WRITES_BINARY.set(True)  # in the task of this call
        rpc = None if is_on() else begin_client(details.method, self._target, request)
        if rpc is None:
            return await continuation(details, request)
        sent = details._replace(metadata=grpc.aio.Metadata(*rpc.metadata(details.metadata)))
        try:
            answer = await continuation(sent, request)
        except BaseException as error:
            rpc.fail(error)
            raise
        try:
            answer.add_done_callback(_ends(rpc))
        except NotImplementedError:  # an answer that an interceptor has made up
            rpc.end("OK")
        return answer


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)


def aio_client_interceptors(target: str = "", *, trace_bin: bool = False) -> list[Any]:
    """For `grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(target))`: gRPC wants one for each arity.

    While install() is on they leave the work to that. `trace_bin`: send `grpc-trace-bin` too.
    """
    return [kind(target, trace_bin) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
