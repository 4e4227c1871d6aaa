"""The sync client: a span for each call, begun before it is sent, ended when its status has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc import _channel
from opentelemetry import trace

from tracefill.calls.rpc_contrib import PACKAGE, step_aside
from tracefill.calls.rpc_spans import CONTRIB, WRITES_BINARY, ClientCall, begin_client, is_on
from tracefill.context import current
from tracefill.snapshots import bind
from tracefill.wrapping import Patches

__all__ = ["ClientInterceptor", "wrap_all"]

_OVER = "_tracefill_over"
_METADATA = 2  # where it stands among the arguments of every multi-callable: request, timeout, metadata, ...


def wrap_all(patches: Patches) -> None:
    """What channels and stubs are made of, so that those which exist already are traced too."""
    for name in ("_UnaryUnaryMultiCallable", "_StreamUnaryMultiCallable"):
        patches.wrap(getattr(_channel, name), "__call__", _blocking)
        patches.wrap(getattr(_channel, name), "with_call", _blocking)
        patches.wrap(getattr(_channel, name), "future", _later)
    for name in ("_UnaryStreamMultiCallable", "_SingleThreadedUnaryStreamMultiCallable", "_StreamStreamMultiCallable"):
        patches.wrap(getattr(_channel, name), "__call__", _later)
    # gRPC runs callbacks in a thread that it has started for some earlier call.
    patches.wrap(_channel._Rendezvous, "add_callback", _with_bound_callback)
    for name in ("_MultiThreadedRendezvous", "_SingleThreadedRendezvous"):
        patches.wrap(getattr(_channel, name), "add_done_callback", _with_bound_callback)
        patches.wrap(getattr(_channel, name), "_next", _seen)
    patches.wrap(_channel._MultiThreadedRendezvous, "result", _seen)


def _blocking(original: Any) -> Callable[..., Any]:
    is_pair = original.__name__ == "with_call"

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        rpc = _begin(self, args[0] if args else None)
        if rpc is None:
            return original(self, *args, **kwargs)
        args, kwargs = _sent(rpc, args, kwargs)
        try:
            answer = original(self, *args, **kwargs)
        except BaseException as error:
            rpc.fail(error)
            raise
        rpc.end("OK", response=answer[0] if is_pair else answer)
        return answer

    return call


def _later(original: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        rpc = _begin(self, args[0] if args else None)
        if rpc is None:
            return original(self, *args, **kwargs)
        args, kwargs = _sent(rpc, args, kwargs)
        try:
            answer = original(self, *args, **kwargs)
        except BaseException as error:
            rpc.fail(error)
            raise
        _end_with(answer, rpc)
        return answer

    return call


def _begin(callable_: Any, request: Any) -> ClientCall | None:
    if CONTRIB not in current() and _is_contribs(trace.get_current_span()):
        step_aside()  # contrib was imported after us: this call is its own, the next will be ours
        return None
    return begin_client(callable_._method, callable_._target, request)


def _is_contribs(span: Any) -> bool:
    scope = getattr(span, "instrumentation_scope", None)
    return scope is not None and scope.name == PACKAGE and span.kind is trace.SpanKind.CLIENT


def _sent(rpc: ClientCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > _METADATA:
        return (*args[:_METADATA], rpc.metadata(args[_METADATA]), *args[_METADATA + 1 :]), kwargs
    return args, {**kwargs, "metadata": rpc.metadata(kwargs.get("metadata"))}


def _end_with(answer: Any, rpc: ClientCall) -> None:
    """Ends the call with its answer, without keeping that alive: one that nobody reads any more cancels itself."""
    state = getattr(answer, "_state", None)
    lock = threading.RLock()

    def over() -> None:
        with lock:  # who comes second waits until the span has ended
            code = getattr(state, "code", None)
            rpc.end("OK" if code is None else code.name, getattr(state, "details", None))

    # The class's own, past whoever has wrapped it: there is no context of the user's to carry.
    add: Any = getattr(type(answer).add_callback, "__wrapped__", type(answer).add_callback)
    if add(answer, over):
        vars(answer)[_OVER] = over
    else:
        over()


def _seen(original: Any) -> Callable[..., Any]:
    """gRPC tells callbacks after the caller's own thread, which may be the program's last step."""

    def see(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            over = vars(self).get(_OVER) if self._state.code is not None else None
            if over is not None:
                over()

    return see


def _with_bound_callback(original: Any) -> Callable[..., Any]:
    def add(self: Any, callback: Any) -> Any:
        return original(self, bind(callback) if callable(callback) else callback)

    return add


class ClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """For `grpc.intercept_channel(channel, ClientInterceptor())`. While install() is on it leaves the work to that.

    `target`: what the channel is connected to, for the spans' server.address. `trace_bin`: send `grpc-trace-bin` too.
    """

    def __init__(self, target: str = "", *, trace_bin: bool = False) -> None:
        self._target = target
        self._trace_bin = trace_bin

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator)

    def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        token = WRITES_BINARY.set(self._trace_bin or WRITES_BINARY.get())
        try:
            return self._call(continuation, details, request)
        finally:
            WRITES_BINARY.reset(token)

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        rpc = None if is_on() else begin_client(details.method, self._target, request)
        if rpc is None:
            return continuation(details, request)
        try:
            answer = continuation(_with_metadata(details, rpc), request)
        except BaseException as error:
            rpc.fail(error)
            raise
        _end_intercepted(answer, rpc)
        return answer


class _Details(grpc.ClientCallDetails):  # type: ignore[misc]
    """The details of a call, with other metadata."""

    def __init__(self, details: Any, metadata: Any) -> None:
        self._details = details
        self.metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._details, name)


def _with_metadata(details: Any, rpc: ClientCall) -> _Details:
    return _Details(details, rpc.metadata(getattr(details, "metadata", None)))


def _end_intercepted(answer: Any, rpc: ClientCall) -> None:
    if isinstance(answer, _channel._Rendezvous):
        _end_with(answer, rpc)
    elif isinstance(answer, grpc.RpcError):  # a blocking call that has failed
        rpc.fail(answer)
    else:
        code = answer.code()
        rpc.end("OK" if code is None else code.name, answer.details())
