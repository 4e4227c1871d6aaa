"""Server spans that somebody else makes: given the request id, links and a life as long as the response's.

Contrib's instrumentations make theirs in one function that each module has imported; FastAPI and Starlette make theirs around
an inner application. What is put in the place of both does nothing for a request that tracefill does not know.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from tracefill.context import current, scope
from tracefill.edge.arrivals import KEY, Arrival
from tracefill.wrapping import Patches

__all__ = ["CONTRIB", "adopt_all", "adopt_contrib", "adopt_fastapi", "adopt_starlette", "is_adopted"]

_SERVER = trace.SpanKind.SERVER

#: Contrib's modules that make server spans by the function that they share.
CONTRIB = (
    "opentelemetry.instrumentation.asgi",
    "opentelemetry.instrumentation.django.middleware.otel_middleware",
    "opentelemetry.instrumentation.flask",
    "opentelemetry.instrumentation.wsgi",
)


def adopt_contrib(patches: Patches, module: str) -> None:
    """From now on the server spans of this module of contrib's are adopted."""
    patches.wrap(sys.modules[module], "_start_internal_or_server_span", _adopting)


def adopt_fastapi(patches: Patches) -> None:
    """The same for FastAPI's own; versions before 0.160 have none."""
    native = getattr(sys.modules.get("fastapi.telemetry._asgi"), "NativeTelemetry", None)
    if native is not None:
        patches.wrap(native, "__call__", _native)


def adopt_starlette(patches: Patches) -> None:
    """The same for the middleware that Starlette offers, once a program has imported it."""
    middleware = getattr(sys.modules.get("starlette.middleware.opentelemetry"), "OpenTelemetryMiddleware", None)
    if middleware is not None:
        patches.wrap(middleware, "__call__", _offered)


def adopt_all(patches: Patches) -> None:
    """The same for all that are loaded."""
    for module in CONTRIB:
        if hasattr(sys.modules.get(module), "_start_internal_or_server_span"):
            adopt_contrib(patches, module)
    adopt_fastapi(patches)
    adopt_starlette(patches)


def is_adopted() -> bool:
    """True while all of contrib's that is loaded is adopted."""
    return all(
        hasattr(getattr(sys.modules[module], "_start_internal_or_server_span", _adopting), "__wrapped__")
        for module in CONTRIB
        if module in sys.modules
    )


def _adopting(original: Any) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def start(*args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(*args, **kwargs).arguments
        carrier = asked["context_carrier"]
        arrival = carrier.get(KEY) if isinstance(carrier, dict) else None
        if arrival is None or arrival.span is not None:
            return original(*args, **kwargs)
        if trace.get_current_span() in (trace.INVALID_SPAN, trace.get_current_span(arrival.context)):
            token = otel_context.attach(arrival.without_span())  # within a span, contrib makes none of a server's
            span, _ = original(*args, **kwargs)
        else:  # a middleware of the program's has opened one
            token = otel_context.attach(current())
            span = asked["tracer"].start_span(
                asked["span_name"], None, _SERVER, asked.get("attributes"), start_time=asked["start_time"]
            )
        otel_context.attach(arrival.adopt(span, current()))
        return span, token  # the oldest: all are detached with it

    return start


def _native(original: Any) -> Callable[..., Any]:
    async def call(self: Any, *, app: Any, scope: Any, **others: Any) -> None:
        arrival = scope.get(KEY)
        if arrival is not None and not others.get("legacy_otel"):
            app = _adopted(app, arrival)
        await original(self, app=app, scope=scope, **others)

    return call


def _offered(original: Any) -> Callable[..., Any]:
    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        arrival = scope.get(KEY)
        if arrival is not None:
            self = copy.copy(self)  # its application is looked up by name, and is another for each request
            self.app = _adopted(self.app, arrival)
        await original(self, scope, receive, send)

    return call


def _adopted(app: Any, arrival: Arrival) -> Any:
    """The application within a middleware that may have just begun a span."""

    async def inside(asgi_scope: Any, receive: Any, send: Any) -> None:
        span = trace.get_current_span()
        begun = span is not trace.INVALID_SPAN and getattr(span, "kind", _SERVER) is _SERVER
        with scope(arrival.adopt(span, current()) if begun else current()):
            await app(asgi_scope, receive, send)

    return inside
