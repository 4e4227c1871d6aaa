"""Who makes the server span of an application: found by a look at its layers, before the first request.

Frameworks and contrib's instrumentations that make one are left to it: theirs is adopted (see adoption.py), never doubled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from tracefill.wrapping import contrib_active

__all__ = ["Maker", "framework", "has_middleware", "layers", "others"]

#: Tells whether somebody makes the server span now: instrumentations are switched on and off, providers are set late.
Maker = Callable[[], bool]

# Under which names a layer of an application keeps the next one.
_INNER = ("app", "wsgi", "wsgi_app", "application", "asgi", "_app", "_application", "inner")
_MOST_LAYERS = 64

_CONTRIB = "opentelemetry.instrumentation."


def layers(app: Any) -> Iterator[Any]:
    """The application and all that it wraps, as far as that can be seen from outside."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen and len(seen) < _MOST_LAYERS:
        seen.add(id(app))
        yield app
        app = _next(app)


def others(app: Any) -> tuple[Maker, ...]:
    """Tests of all within the application that may make a server span; most applications have none, and none is asked for
    where tracefill's own Middleware stands before it."""
    found = []
    for layer in layers(app):
        if _is_ours(layer):
            break
        maker = _maker(layer)
        if maker is not None:
            found.append(maker)
    return tuple(found)


def has_middleware(app: Any) -> bool:
    """True when tracefill's own Middleware is within."""
    return any(_is_ours(layer) for layer in layers(app))


def framework(app: Any) -> str:
    """The framework within, by the name that it has in OpenTelemetry's variables; "HTTP" when there is none that we know.

    >>> framework(print)
    'HTTP'
    """
    for layer in layers(app):
        kinds = _kinds(layer)
        for kind, name in _NAMES.items():
            if kind in kinds:
                return name
    return "HTTP"


def _is_ours(layer: Any) -> bool:
    return bool(getattr(layer.__class__, "makes_server_span", False))


def _next(app: Any) -> Any:
    if isinstance(app, functools.partial):
        return app.func
    for holder in (getattr(app, "__dict__", {}), getattr(app, "__slots__", ())):
        for name in _INNER:
            if name in holder:
                return getattr(app, name, None)
    return getattr(app, "__wrapped__", None) or getattr(app, "__self__", None) or _enclosed(app)


def _enclosed(app: Any) -> Any:
    """What a middleware that is a function within a function stands before, as waitress's own is."""
    code = getattr(app, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(app, "__closure__", None) or (), strict=False):
        if name in _INNER:
            try:
                return cell.cell_contents
            except ValueError:  # not there yet
                return None
    return None


def _kinds(layer: Any) -> set[str]:
    # By __class__, which a weak proxy has of what it stands for.
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in layer.__class__.__mro__}


def _maker(layer: Any) -> Maker | None:
    kinds = _kinds(layer)
    if any(kind.startswith(_CONTRIB) and kind.endswith(".OpenTelemetryMiddleware") for kind in kinds):
        return _always
    if "starlette.middleware.opentelemetry.OpenTelemetryMiddleware" in kinds:
        return _always
    for kind, maker in _FRAMEWORKS.items():
        if kind in kinds:
            return functools.partial(maker, layer)
    return None


def _always() -> bool:
    return True


def _flagged(app: Any) -> bool:
    """Contrib's own mark on an application that it has instrumented."""
    return bool(getattr(app, "_is_instrumented_by_opentelemetry", False))


def _starlette(app: Any) -> bool:
    if _flagged(app):
        return True
    if any(getattr(entry.cls, "__name__", "") == "OpenTelemetryMiddleware" for entry in app.user_middleware):
        return True
    native = getattr(app, "_native_telemetry", None)  # FastAPI's own
    return native is not None and bool(native.config.get("tracing")) and native.enabled()


def _django(_: Any) -> bool:
    return contrib_active("opentelemetry.instrumentation.django", "DjangoInstrumentor")


_NAMES = {
    "flask.app.Flask": "FLASK",
    "fastapi.applications.FastAPI": "FASTAPI",
    "starlette.applications.Starlette": "STARLETTE",
    "django.core.handlers.base.BaseHandler": "DJANGO",
}

_FRAMEWORKS: dict[str, Callable[[Any], bool]] = {
    "flask.app.Flask": _flagged,
    "starlette.applications.Starlette": _starlette,
    "django.core.handlers.wsgi.WSGIHandler": _django,
    "django.core.handlers.asgi.ASGIHandler": _django,
}
