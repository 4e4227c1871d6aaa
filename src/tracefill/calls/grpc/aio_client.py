"""The aio client: see `tracefill.calls.grpc.client`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import grpc
from grpc.aio import _channel

from tracefill.calls.grpc.server import is_contribs
from tracefill.calls.rpc_contrib import step_aside
from tracefill.calls.rpc_spans import ClientCall, begin_client, is_on
from tracefill.wrapping import Patches

__all__ = ["aio_client_interceptors", "wrap_all"]

_METADATA = 2
_TARGET = "_tracefill_target"


def wrap_all(patches: Patches) -> None:
    """What channels and stubs are made of, so that those which exist already are traced too."""
    patches.wrap(_channel.Channel, "__init__", _remember_target)
    for name in ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"):
        patches.wrap(getattr(_channel, f"{name}MultiCallable"), "__call__", _call)


def _remember_target(original: Any) -> Callable[..., None]:
    def init(self: Any, target: str, *args: Any, **kwargs: Any) -> None:
        original(self, target, *args, **kwargs)
        setattr(self, _TARGET, target)

    return init


def _call(original: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        rpc = _begin(self, args[0] if args else None, kwargs)
        if rpc is None:
            return original(self, *args, **kwargs)
        if len(args) > _METADATA:
            args = (*args[:_METADATA], rpc.metadata(args[_METADATA]), *args[_METADATA + 1 :])
        else:
            kwargs["metadata"] = rpc.metadata(kwargs.get("metadata"))
        try:
            answer = original(self, *args, **kwargs)
        except BaseException as error:
            rpc.fail(error)
            raise
        answer.add_done_callback(_ends(rpc))
        return answer

    return call


def _begin(callable_: Any, request: Any, kwargs: dict[str, Any]) -> ClientCall | None:
    theirs = next((one for one in callable_._interceptors or () if is_contribs(one)), None)
    if theirs is not None:
        step_aside()
        details = grpc.aio.ClientCallDetails(callable_._method, kwargs.get("timeout"), None, None, None)
        if theirs._filter is not None and not theirs._filter(details):
            return None
    target = getattr(getattr(callable_, "_python_channel", None), _TARGET, "")
    return begin_client(callable_._method, target, request, theirs)


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
    def __init__(self, target: str = "") -> None:
        self._target = target

    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        rpc = None if is_on() else begin_client(details.method, self._target, request)
        if rpc is None:
            return await continuation(details, request)
        sent = details._replace(metadata=grpc.aio.Metadata(*rpc.metadata(details.metadata)))
        try:
            answer = await continuation(sent, request)
        except BaseException as error:
            rpc.fail(error)
            raise
        answer.add_done_callback(_ends(rpc))
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


def aio_client_interceptors(target: str = "") -> list[Any]:
    """For `grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(target))`: gRPC wants one for each arity.

    While install() is on they leave the work to that.
    """
    return [kind(target) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
