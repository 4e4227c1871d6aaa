"""Flask (2.3 and later): a server span for each request, named after its route; see `tracefill.calls.wsgi`.

    app.wsgi_app = Middleware(app.wsgi_app)     # without install()

Views, streamed responses, `stream_with_context`, `call_on_close` and teardown functions run inside of the span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.calls.wsgi_spans import Middleware, failed, routed, serving
from tracefill.context import extract, inject, scope
from tracefill.edge.arrivals import KEY
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "Middleware", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("flask.app",)

_patches = Patches()


def patch() -> None:
    from flask.app import Flask  # flask.Flask is contrib's subclass while that is active
    from flask.signals import got_request_exception, request_started

    _patches.wrap(Flask, "__call__", _call)
    request_started.connect(_route)
    got_request_exception.connect(_failed)


def unpatch() -> None:
    from flask.signals import got_request_exception, request_started

    _patches.undo()
    request_started.disconnect(_route)
    got_request_exception.disconnect(_failed)
    serving.stop()


def _call(original: Any) -> Callable[..., Any]:
    def call(self: Any, environ: Any, start_response: Any) -> Any:
        if KEY in environ:
            return original(self, environ, start_response)
        return serving.entered(self, original)(environ, start_response)

    return call


def _route(_: Any, **__: Any) -> None:
    from flask import request

    if request.url_rule is not None:
        routed(request.environ, request.url_rule.rule)


def _failed(_: Any, exception: BaseException, **__: Any) -> None:
    from flask import request

    failed(request.environ, exception)
