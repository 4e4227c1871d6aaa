"""Who makes the server span of an application: found by a look at its layers, before the first request.

Frameworks and contrib's instrumentations that make one are left to it: theirs is adopted (see adoption.py), never doubled.
Where a program has put tracefill's own Middleware around them, frameworks are told to make none; contrib can not be told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from tracefill.wrapping import contrib_active

__all__ = ["Maker", "contribs", "framework", "has_middleware", "layers", "others"]

#: Tells whether somebody makes the server span now: instrumentations are switched on and off, providers are set late.
Maker = Callable[[], bool]

# Under which names a layer of an application keeps the next one.
_INNER = ("app", "wsgi", "wsgi_app", "application", "asgi", "_app", "_application", "inner")
_MOST_LAYERS = 64

_CONTRIB = "opentelemetry.instrumentation."
_STARLETTES_OWN = "starlette.middleware.opentelemetry.OpenTelemetryMiddleware"


def layers(app: Any) -> Iterator[Any]:
    """The application and all that it wraps, as far as that can be seen from outside."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen and len(seen) < _MOST_LAYERS:
        seen.add(id(app))
        yield app
        app = _next(app)


def others(app: Any) -> tuple[Maker, ...]:
    """Tests of all within the application that may make a server span; most applications have none."""
    found: list[Maker | None] = []
    is_silenced = False
    for layer in layers(app):
        is_silenced = is_silenced or _is_ours(layer)
        found += [_contrib(layer), None if is_silenced else _framework(layer)]
    return tuple(maker for maker in found if maker is not None)


def contribs(app: Any) -> tuple[Maker, ...]:
    """Those of them that are contrib's."""
    return tuple(maker for maker in map(_contrib, layers(app)) if maker is not None)


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
    return _names(layer.__class__)  # which a weak proxy has of what it stands for


def _names(kind: Any) -> set[str]:
    return {f"{each.__module__}.{each.__qualname__}" for each in getattr(kind, "__mro__", ())}


def _contrib(layer: Any) -> Maker | None:
    kinds = _kinds(layer)
    if any(kind.startswith(_CONTRIB) and kind.endswith(".OpenTelemetryMiddleware") for kind in kinds):
        return _always
    return next((functools.partial(maker, layer) for kind, maker in _INSTRUMENTED.items() if kind in kinds), None)


def _framework(layer: Any) -> Maker | None:
    """What Starlette and FastAPI make without contrib."""
    kinds = _kinds(layer)
    if _STARLETTES_OWN in kinds:
        return _always
    return functools.partial(_native, layer) if "starlette.applications.Starlette" in kinds else None


def _always() -> bool:
    return True


def _flagged(app: Any) -> bool:
    """Contrib's own mark on an application that it has instrumented."""
    return bool(getattr(app, "_is_instrumented_by_opentelemetry", False))


def _starlette(app: Any) -> bool:
    return _flagged(app) or any(
        getattr(entry.cls, "__module__", "").startswith(_CONTRIB) and entry.cls.__name__ == "OpenTelemetryMiddleware"
        for entry in app.user_middleware
    )


def _native(app: Any) -> bool:
    if any(_STARLETTES_OWN in _names(entry.cls) for entry in app.user_middleware):
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

_INSTRUMENTED: dict[str, Callable[[Any], bool]] = {
    "flask.app.Flask": _flagged,
    "starlette.applications.Starlette": _starlette,
    "django.core.handlers.wsgi.WSGIHandler": _django,
    "django.core.handlers.asgi.ASGIHandler": _django,
}
