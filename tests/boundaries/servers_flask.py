"""Entry: Flask, served by wsgiref."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from flask.app import Flask as FlaskImportedBefore  # which contrib does not replace

from tests.boundaries import Program, boundary
from tests.calls.running import ask, here, wsgi

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.flask:FlaskInstrumentor",
]


def flask_app():
    import flask

    return flask.Flask(__name__)


def call_twice(b: Program, app, path="/{}"):
    with wsgi(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, path.format(key), here()).status == 200


@boundary("Flask view")
def view(b: Program) -> None:
    app = flask_app()

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("Flask view of an application that was there before")
def imported_before(b: Program) -> None:
    app = FlaskImportedBefore(__name__)

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("Flask streaming Response(generator)")
def streaming(b: Program) -> None:
    from flask import Response

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        def body():
            yield "first"
            b.far(key)
            yield "second"

        return Response(body())

    call_twice(b, app)


@boundary("Flask stream_with_context")
def streaming_with_context(b: Program) -> None:
    from flask import Response, request, stream_with_context

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        def body():
            yield "first"
            b.far(request.view_args["key"])

        return Response(stream_with_context(body()))

    call_twice(b, app)


@boundary("Flask stream_with_context, span held over the steps")
def held(b: Program) -> None:
    from flask import Response, stream_with_context

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        def body():
            with b.span("held"):
                yield "first"
                yield "second"
                b.far(key)

        return Response(stream_with_context(body()))

    call_twice(b, app)


@boundary("Flask call_on_close / teardown_request work")
def teardown(b: Program) -> None:
    from flask import Response, request

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        response = Response("done")
        response.call_on_close(lambda: b.far(key))
        return response

    @app.teardown_request
    def leave(_):
        b.far(request.view_args["key"])

    call_twice(b, app)


@boundary("Flask before_request, after_request and an error handler")
def hooks(b: Program) -> None:
    from flask import request

    app = flask_app()

    @app.before_request
    def enter():
        b.far(request.view_args["key"])

    @app.after_request
    def leave(response):
        b.far(request.view_args["key"])
        return response

    @app.errorhandler(ZeroDivisionError)
    def sorry(_):
        b.far(request.view_args["key"])
        return "sorry", 200

    @app.get("/<key>")
    def show(key):
        return str(1 / 0)

    call_twice(b, app)


@boundary("Flask copy_current_request_context run in a thread")
def copied(b: Program) -> None:
    from flask import copy_current_request_context, request

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        @copy_current_request_context
        def work():
            b.far(request.view_args["key"])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return "done"

    call_twice(b, app)


@boundary("Flask view to ThreadPoolExecutor (fire and forget)", expect="later")
def pool(b: Program) -> None:
    app = flask_app()
    workers = ThreadPoolExecutor(1)

    def work(key):
        time.sleep(0.02)
        b.far(key)

    @app.get("/<key>")
    def show(key):
        workers.submit(work, key)
        return "done"

    with workers:
        call_twice(b, app)


@boundary("Flask async view")
def asynchronous(b: Program) -> None:
    import asyncio

    app = flask_app()

    @app.get("/<key>")
    async def show(key):
        await asyncio.sleep(0)
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("Flask with a middleware of its own around wsgi_app")
def wrapped(b: Program) -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    app = flask_app()
    app.wsgi_app = ProxyFix(app.wsgi_app)

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    call_twice(b, app)


@boundary("Flask applications mounted below one another")
def mounted(b: Program) -> None:
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    outer, inner = flask_app(), flask_app()

    @inner.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    call_twice(b, DispatcherMiddleware(outer, {"/inner": inner}), "/inner/{}")


@boundary("Flask's development server")
def development_server(b: Program) -> None:
    from werkzeug.serving import make_server

    from tests.calls.running import in_thread

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    server = make_server("127.0.0.1", 0, app, threaded=True)
    with in_thread(server.serve_forever, server.shutdown):
        for key in "ab":
            with b.near(key):
                assert ask(server.server_port, f"/{key}", here()).status == 200


@boundary("Flask test client within a span")
def test_client(b: Program) -> None:
    app = flask_app()

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    client = app.test_client()
    for key in "ab":
        with b.near(key):
            assert client.get(f"/{key}").text == "done"


@boundary("Flask view, two requests on one thread: no leak", expect="own root")
def alone(b: Program) -> None:
    app = flask_app()

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    with wsgi(app) as port, b.near():
        for key in "ab":
            ask(port, f"/{key}")


@boundary("Flask blueprint in a blueprint, with hooks of its own")
def blueprint(b: Program) -> None:
    from flask import Blueprint, request

    outer, inner, app = Blueprint("outer", __name__), Blueprint("inner", __name__), flask_app()

    @inner.before_request
    def enter():
        b.far(request.view_args["key"])

    @inner.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    outer.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(outer, url_prefix="/outer")
    call_twice(b, app, "/outer/inner/{}")


@boundary("Flask MethodView")
def method_view(b: Program) -> None:
    from flask.views import MethodView

    class Show(MethodView):
        def get(self, key):
            b.far(key)
            return "done"

    app = flask_app()
    app.add_url_rule("/<key>", view_func=Show.as_view("show"))
    call_twice(b, app)


@boundary("Flask handlers for aborts and for exceptions of one's own")
def error_handlers(b: Program) -> None:
    from flask import abort, request

    class Sold(Exception):
        pass

    app = flask_app()

    @app.errorhandler(Sold)
    @app.errorhandler(404)
    def sorry(error):
        b.far(request.view_args["key"])
        return "sorry", 200

    @app.get("/<key>")
    def show(key):
        if key == "a":
            raise Sold
        abort(404)

    call_twice(b, app)


@boundary("Flask view fails: next request on that thread is clean")
def failing(b: Program) -> None:
    import logging

    logging.disable()
    app = flask_app()

    @app.get("/<key>")
    def show(key):
        b.far(key)
        raise ValueError("the user's own")

    with wsgi(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 500


@boundary("Flask async view: asyncio.to_thread and gather")
def asynchronous_threads(b: Program) -> None:
    import asyncio

    app = flask_app()

    @app.get("/<key>")
    async def show(key):
        await asyncio.gather(*(asyncio.to_thread(b.far, key) for _ in range(2)))
        return "done"

    call_twice(b, app)


@boundary("Flask events that go on (SSE), fed by a thread of the request")
def events(b: Program) -> None:
    import queue

    from flask import Response

    app = flask_app()

    @app.get("/<key>")
    def show(key):
        fed = queue.SimpleQueue()

        def feed():
            for _ in range(2):
                b.far(key)
                fed.put("data: x\n\n")
            fed.put(None)

        def body():
            worker = threading.Thread(target=feed)
            worker.start()
            while (event := fed.get()) is not None:
                yield event
            worker.join()
            b.far(key)

        return Response(body(), mimetype="text/event-stream")

    call_twice(b, app)


@boundary("Flask with a WSGI middleware of the user's that opens a span, outside and inside")
def own_middleware(b: Program) -> None:
    def opening(app):
        def call(environ, start_response):
            with b.span("middleware"):
                return app(environ, start_response)

        return call

    app = flask_app()
    app.wsgi_app = opening(app.wsgi_app)

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    call_twice(b, opening(app))


@boundary("Flask application of a factory, each request by another one")
def factory(b: Program) -> None:
    def make():
        app = flask_app()

        @app.get("/<key>")
        def show(key):
            b.far(key)
            return "done"

        return app

    for key in "ab":
        with wsgi(make()) as port, b.near(key):
            assert ask(port, f"/{key}", here()).status == 200
