from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("django")

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.test.utils import override_settings
from django.urls import path
from opentelemetry.instrumentation.django import DjangoInstrumentor

from tests.calls.running import asgi, wsgi
from tests.calls.server_contract import HEADERS, FrameworkContract, position, work
from tracefill.calls import asgi as calls_asgi
from tracefill.calls.django import Middleware


def order(request: Any, order_no: str) -> HttpResponse:
    return HttpResponse(position(), headers=dict(HEADERS))


def status(request: Any, code: int) -> HttpResponse:
    return HttpResponse(status=code)


def fail(request: Any) -> HttpResponse:
    raise KeyError("order")


def stream(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(position() for _ in range(3))


async def stream_asynchronously(request: Any) -> StreamingHttpResponse:
    async def body() -> Any:
        for _ in range(3):
            yield position()

    return StreamingHttpResponse(body())


class Working(HttpResponse):
    def close(self) -> None:
        super().close()
        time.sleep(0.01)
        work()


def after(request: Any) -> HttpResponse:
    return Working("done")


urlpatterns = [
    path("orders/<order_no>", order),
    path("status/<int:code>", status),
    path("fail", fail),
    path("stream", stream),
    path("stream_asynchronously", stream_asynchronously),
    path("after", after),
]


class DjangoContract(FrameworkContract):
    name = "django"
    library = "DJANGO"
    route = "/orders/<order_no>"
    contrib = DjangoInstrumentor
    contrib_scope = "opentelemetry.instrumentation.django"
    works_after = True
    shows_route = False
    shows_failures = False

    def owners(self) -> list[Any]:
        return [WSGIHandler, ASGIHandler, BaseHandler]

    @pytest.fixture(autouse=True)
    def _project(self) -> Iterator[None]:
        if not settings.configured:
            settings.configure()
            django.setup()
        settings.SECRET_KEY = "tests"
        # Contrib's instrumentor writes into the settings, and leaves some of it behind.
        with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[]):
            yield


class TestDjangoByWSGI(DjangoContract):
    scope = "tracefill.calls.wsgi"
    middleware = Middleware

    def app(self) -> Any:
        return get_wsgi_application()

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with wsgi(app) as port:
            yield port


class TestDjangoByASGI(DjangoContract):
    scope = "tracefill.calls.asgi"
    middleware = calls_asgi.Middleware

    def app(self) -> Any:
        return get_asgi_application()

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with asgi(app) as port:
            yield port

    def ask(self, app: Any, path: str, *args: Any, **headers: str) -> Any:
        return super().ask(app, "/stream_asynchronously" if path == "/stream" else path, *args, **headers)
