from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("flask")

import flask
from flask.app import Flask
from opentelemetry.instrumentation.flask import FlaskInstrumentor

from tests.calls.running import wsgi
from tests.calls.server_contract import HEADERS, FrameworkContract, position, work
from tracefill.calls.flask import Middleware


class TestFlask(FrameworkContract):
    name = "flask"
    scope = "tracefill.calls.wsgi"
    library = "FLASK"
    route = "/orders/<order_no>"
    contrib = FlaskInstrumentor
    contrib_scope = "opentelemetry.instrumentation.flask"
    works_after = True
    middleware = Middleware
    shows_failures = False

    def owners(self) -> list[Any]:
        return [Flask]

    def app(self) -> Any:
        app = flask.Flask(__name__)

        @app.get("/orders/<order_no>")
        def order(order_no: str) -> Any:
            return position(), 200, HEADERS

        @app.get("/status/<int:code>")
        def status(code: int) -> Any:
            return "", code

        @app.get("/fail")
        def fail() -> Any:
            raise KeyError("order")

        @app.get("/stream")
        def stream() -> Any:
            return flask.Response(position() for _ in range(3))

        @app.get("/after")
        def after() -> Any:
            response = flask.Response(iter(["done"]))
            response.call_on_close(work)
            return response

        return app

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[int]:
        with wsgi(app) as port:
            yield port
