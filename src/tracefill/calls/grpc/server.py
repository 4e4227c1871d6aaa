"""The sync server: a span from the first of its interceptors to the last of the responses."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from grpc import _interceptor, _server
from opentelemetry import context as otel_context

from tracefill.calls.rpc_spans import ServerCall, begin_server
from tracefill.context import scope
from tracefill.wrapping import Patches

__all__ = ["Responses", "ServerInterceptor", "arrived", "end", "handler_like", "is_contribs", "status_name", "wrap_all"]


def wrap_all(patches: Patches) -> None:
    """Where every call comes in, whenever and however its server was made."""
    patches.wrap(_server, "_handle_call", _handle_call)


def _handle_call(original: Any) -> Callable[..., Any]:
    place = list(inspect.signature(original).parameters).index("interceptor_pipeline")

    def handle(*args: Any) -> Any:
        pipeline = args[place]
        given = pipeline.interceptors if pipeline is not None else ()
        return original(*args[:place], _interceptor._ServicePipeline(_ours_first(given)), *args[place + 1 :])

    return handle


def _ours_first(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Our interceptor outside of the user's own, and in the place of contrib's, whose filter it keeps to."""
    theirs = [interceptor for interceptor in given if is_contribs(interceptor)]
    others = tuple(interceptor for interceptor in given if interceptor not in theirs)
    if any(type(interceptor) is ServerInterceptor for interceptor in others):
        return others
    return (ServerInterceptor(theirs[0]._filter) if theirs else _everything, *others)


def is_contribs(interceptor: Any) -> bool:
    return type(interceptor).__module__.startswith("opentelemetry.instrumentation.grpc.")


class ServerInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.server(pool, interceptors=[ServerInterceptor()])`; the first, so that the others see its span.

    `is_traced(handler_call_details)`: False for a call that is to have no span; its caller's is current.
    """

    def __init__(self, is_traced: Callable[[Any], bool] | None = None) -> None:
        self._is_traced = is_traced

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        rpc = arrived(handler_call_details, self._is_traced)
        if rpc is None:
            return continuation(handler_call_details)
        try:
            with scope(rpc.inside):
                handler = continuation(handler_call_details)
        except BaseException as error:
            rpc.end("UNKNOWN", error=error)
            raise
        if handler is None:
            rpc.end("UNIMPLEMENTED", "Method not found!")
            return None
        return handler_like(handler, _streamed if handler.response_streaming else _unary, rpc)


def arrived(details: Any, is_traced: Callable[[Any], bool] | None) -> ServerCall | None:
    """The call that these details are of; None when nothing is to be done about it."""
    return begin_server(
        details.method, details.invocation_metadata, is_traced=is_traced is None or bool(is_traced(details))
    )


_everything = ServerInterceptor()

_FACTORIES: dict[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def handler_like(handler: Any, make: Callable[[Any, ServerCall], Any], rpc: ServerCall) -> Any:
    """The handler with `make(behavior, rpc)` for its behavior."""
    name, factory = _FACTORIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    behavior = getattr(handler, name)
    made = make(behavior, rpc)
    # gRPC looks for attributes of its own on behaviors.
    functools.update_wrapper(made, behavior, assigned=())
    del made.__wrapped__
    return factory(made, handler.request_deserializer, handler.response_serializer)


def _unary(behavior: Any, rpc: ServerCall) -> Any:
    def serve(request: Any, context: Any) -> Any:
        _hold_callbacks(rpc, context)
        with scope(rpc.inside):
            try:
                response = behavior(request, context)
            except BaseException as error:
                end(rpc, context, error)
                raise
        end(rpc, context)
        return response

    return serve


def _streamed(behavior: Any, rpc: ServerCall) -> Any:
    if getattr(behavior, "experimental_non_blocking", False):
        return _non_blocking(behavior, rpc)

    def serve(request: Any, context: Any) -> Any:
        _hold_callbacks(rpc, context)
        return Responses(rpc, context, behavior, request, context)

    return serve


def _non_blocking(behavior: Any, rpc: ServerCall) -> Any:
    """A handler that returns at once, and sends until it has sent None."""

    def serve(request: Any, context: Any, send: Any) -> None:
        def send_or_end(response: Any) -> None:
            if response is None:
                end(rpc, context)
            send(response)

        context.add_callback(lambda: end(rpc, context, gone=True))
        _hold_callbacks(rpc, context)
        with scope(rpc.inside):
            try:
                behavior(request, context, send_or_end)
            except BaseException as error:
                end(rpc, context, error)
                raise

    return serve


class Responses:
    """The responses of one call, each made in the call's own contextvars.Context: what a generator has attached is there again
    when it goes on, and nowhere else."""

    def __init__(self, rpc: ServerCall, status: Any, behavior: Any, *args: Any) -> None:
        self._rpc = rpc
        self._status = status
        self._own = contextvars.copy_context()
        self._own.run(otel_context.attach, rpc.inside)
        self._steps: Any = iter(())
        self._steps = self._step(iter, self._step(behavior, *args))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._step(next, self._steps)

    def _step(self, function: Any, *args: Any) -> Any:
        try:
            return self._own.run(function, *args)
        except StopIteration:
            self._end()
            raise
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException | None = None) -> None:
        end(self._rpc, self._status, error)

    def close(self) -> None:
        """The caller has gone, or the server has stopped."""
        close = getattr(self._steps, "close", None)
        try:
            if close is not None:
                self._own.run(close)
        finally:
            end(self._rpc, self._status, gone=True)

    def __del__(self) -> None:
        self.close()


def end(rpc: ServerCall, context: Any, error: BaseException | None = None, *, gone: bool = False) -> None:
    """Ends the span with the status that the handler has left in its context."""
    code = status_name(context)
    gone = gone or not _is_active(context)
    if error is None or (
        gone and type(error) is grpc.RpcError
    ):  # what reading the next request of a lost caller raises
        rpc.end(code or _without_code(context, gone), _details(context))
    else:
        aborted = code is not None and (type(error) is Exception or type(error).__name__ == "AbortError")
        rpc.end(code or "UNKNOWN", _details(context), None if aborted else error)


# The caller's deadline began before the call had arrived here: that he has gone may be known before it has passed here, too.
_TRANSIT_SECONDS = 0.05


def _without_code(context: Any, gone: bool) -> str:
    """The status where the handler has set none. A caller whose deadline has passed has given up, whatever he is sent."""
    left = context.time_remaining()
    if left is not None and left <= (_TRANSIT_SECONDS if gone else 0):
        return "DEADLINE_EXCEEDED"
    return "CANCELLED" if gone else "OK"


def status_name(context: Any) -> str | None:
    """The name of the status that a handler has set; None when it has set none."""
    code = getattr(context, "code", None)
    found = code() if callable(code) else None
    if found is None:
        return None
    return str(getattr(found, "name", None) or _NAMES.get(found, "UNKNOWN"))


_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def _details(context: Any) -> str | None:
    details = getattr(context, "details", None)
    found = details() if callable(details) else None
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def _is_active(context: Any) -> bool:
    is_active = getattr(context, "is_active", None)
    return bool(is_active()) if callable(is_active) else True


def _hold_callbacks(rpc: ServerCall, context: Any) -> None:
    """Callbacks of the call, which gRPC runs in another thread, belong to it."""
    add = context.add_callback

    def add_callback(callback: Any) -> Any:
        held = rpc.hold(callback)
        added = add(held)
        if not added and held is not callback:
            rpc.release()
        return added

    if hasattr(context, "__dict__"):
        context.add_callback = add_callback
