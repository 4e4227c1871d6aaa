"""Entry: WSGI servers. Plain applications, served by wsgiref and by servers that read the body in their own way."""

import contextlib
import multiprocessing
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from wsgiref.simple_server import ServerHandler, WSGIServer

from tests.boundaries import Program, boundary
from tests.calls.running import ask, here, in_thread, wait_for, wsgi

CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]

PLAIN = [("Content-Type", "text/plain")]


def instrumented(app):
    """As a user of contrib wraps a plain application; a user of tracefill does nothing."""
    if "contrib" not in os.environ["BOUNDARY_MODE"]:
        return app
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app)


def call_twice(b: Program, port: int) -> None:
    for key in "ab":
        with b.near(key):
            assert ask(port, f"/{key}", here()).status == 200


@boundary("WSGI app handler")
def handler(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        start_response("200 OK", PLAIN)
        return [b"done"]

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI streaming body (iterator consumed after the handler returns)")
def streaming(b: Program) -> None:
    def app(environ, start_response):
        start_response("200 OK", PLAIN)

        def body():
            yield b"first"
            b.far(environ["PATH_INFO"][1:])
            yield b"second"

        return body()

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI body with a span held over its steps")
def held(b: Program) -> None:
    def app(environ, start_response):
        start_response("200 OK", PLAIN)

        def body():
            with b.span("held"):
                yield b"first"
                b.far(environ["PATH_INFO"][1:])
                yield b"second"

        return body()

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI application that is a generator itself")
def lazy(b: Program) -> None:
    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        yield b"first"
        b.far(environ["PATH_INFO"][1:])

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI write() callable")
def write(b: Program) -> None:
    def app(environ, start_response):
        start_response("200 OK", PLAIN)(b"written")
        b.far(environ["PATH_INFO"][1:])
        return []

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI streaming body, client disconnects: next request on that thread is clean")
def disconnect(b: Program) -> None:
    gone = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", PLAIN)

        def body():
            with contextlib.suppress(GeneratorExit):
                yield b"x" * 65536
                gone.wait(10)
                while environ["PATH_INFO"] == "/gone":
                    yield b"x" * 65536
                b.far("b")

        return body()

    with wsgi(instrumented(app)) as port:
        with b.near("gone"), socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"GET /gone HTTP/1.1\r\ntraceparent: {here()['traceparent']}\r\n\r\n".encode())
            client.recv(1)
        gone.set()
        with b.near("b"):
            ask(port, "/b", here())


@boundary("WSGI body closed without iteration (HEAD/304), next use of the thread")
def unread(b: Program) -> None:
    class Server(WSGIServer):
        def finish_request(self, request, client_address):
            super().finish_request(request, client_address)
            b.clean("server thread after the response was closed")

    class Handler(ServerHandler):
        def finish_response(self):
            self.result.close()
            self.send_headers()
            self.finish_content()
            self.close()

    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        start_response("304 Not Modified", [])

        def body():
            yield b"never read"

        return body()

    with wsgi(instrumented(app), Server, Handler) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("WSGI body iterated in another thread than the handler")
def other_thread(b: Program) -> None:
    class Handler(ServerHandler):
        def finish_response(self):
            b.clean("handler thread after returning")
            reader = threading.Thread(target=super().finish_response)
            reader.start()
            reader.join()

    def app(environ, start_response):
        start_response("200 OK", PLAIN)

        def body():
            b.far(environ["PATH_INFO"][1:])
            yield b"read elsewhere"

        return body()

    with wsgi(instrumented(app), handler=Handler) as port:
        call_twice(b, port)


@boundary("WSGI body whose close() works")
def closing(b: Program) -> None:
    class Body:
        def __init__(self, key):
            self.key = key

        def __iter__(self):
            return iter([b"done"])

        def close(self):
            b.far(self.key)

    def app(environ, start_response):
        start_response("200 OK", PLAIN)
        return Body(environ["PATH_INFO"][1:])

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


@boundary("WSGI handler fails: next request on that thread is clean")
def failing(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        raise ValueError("the user's own")

    with wsgi(instrumented(app)) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 500


@boundary("WSGI handler hands work to its own pool", expect="later")
def pool(b: Program) -> None:
    workers = ThreadPoolExecutor(1)
    done = []

    def app(environ, start_response):
        done.append(workers.submit(b.far, environ["PATH_INFO"][1:]))
        start_response("200 OK", PLAIN)
        return [b"done"]

    with wsgi(instrumented(app)) as port, workers:
        call_twice(b, port)
    assert len(done) == 2


@boundary("WSGI requests without a context have roots of their own", expect="own root")
def alone(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        start_response("200 OK", PLAIN)
        return [b"done"]

    with b.near("server"), wsgi(instrumented(app)) as port:
        for key in "ab":
            ask(port, f"/{key}")


@boundary("WSGI application that another one calls: one server span")
def nested(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        start_response("200 OK", PLAIN)
        return [b"done"]

    inner = instrumented(app)

    def outer(environ, start_response):
        yield from inner(environ, start_response)

    with wsgi(outer) as port:
        call_twice(b, port)


@boundary("WSGI middleware of the user's outside that opens a span, and works after the application")
def outer_middleware(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][1:])
        start_response("200 OK", PLAIN)
        return [b"done"]

    inner = instrumented(app)

    def opening(environ, start_response):
        key = environ["PATH_INFO"][1:]
        b.far(key)
        with b.span("middleware"):
            body = inner(environ, start_response)
        b.far(key)
        return body

    with wsgi(opening) as port:
        call_twice(b, port)


@boundary("WSGI application whose handler runs a loop, and threads of that")
def own_loop(b: Program) -> None:
    import asyncio

    def app(environ, start_response):
        asyncio.run(asyncio.to_thread(b.far, environ["PATH_INFO"][1:]))
        start_response("200 OK", PLAIN)
        return [b"done"]

    with wsgi(instrumented(app)) as port:
        call_twice(b, port)


def streamed(b: Program):
    def app(environ, start_response):
        key = environ["PATH_INFO"][1:]
        start_response("200 OK", PLAIN)

        def body():
            b.far(key)
            yield b"first"
            b.far(key)

        b.far(key)
        return body()

    return instrumented(app)


@contextlib.contextmanager
def gunicorn(app, **settings):
    """gunicorn as it is, its master in a process of its own."""
    from gunicorn.app.base import BaseApplication

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Application(BaseApplication):
        def load_config(self):
            for name, value in {"bind": f"127.0.0.1:{port}", "loglevel": "critical", **settings}.items():
                self.cfg.set(name, value)

        def load(self):
            return app

    master = multiprocessing.get_context("fork").Process(target=lambda: Application().run())
    master.start()

    def listening():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    try:
        wait_for(listening)
        yield port
    finally:
        master.terminate()
        master.join(60)


@boundary("WSGI application on gunicorn, sync worker")
def gunicorn_sync(b: Program) -> None:
    with gunicorn(streamed(b)) as port:
        call_twice(b, port)


@boundary("WSGI application on gunicorn, gthread worker, preloaded")
def gunicorn_threads(b: Program) -> None:
    with gunicorn(streamed(b), worker_class="gthread", threads=4, preload_app=True) as port:
        call_twice(b, port)


@boundary("Flask on gunicorn, two workers, requests one after the other")
def gunicorn_flask(b: Program) -> None:
    import flask.app

    app = flask.app.Flask(__name__)

    @app.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    with gunicorn(app, workers=2) as port:
        call_twice(b, port)


@boundary("WSGI application on waitress")
def waitress(b: Program) -> None:
    from waitress.server import create_server

    server = create_server(streamed(b), host="127.0.0.1", port=0, threads=2)

    def run():
        with contextlib.suppress(OSError):  # closed below its loop
            server.run()

    with in_thread(run, server.close):
        call_twice(b, server.effective_port)


@boundary("WSGI application on werkzeug's server, in threads")
def werkzeug(b: Program) -> None:
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, streamed(b), threaded=True)
    with in_thread(server.serve_forever, server.shutdown):
        call_twice(b, server.server_port)


@boundary("WSGI applications mounted below one another")
def mounted(b: Program) -> None:
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    def missing(environ, start_response):
        start_response("404 Not Found", PLAIN)
        return []

    with wsgi(DispatcherMiddleware(missing, {"/inner": streamed(b)})) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/inner/{key}", here()).status == 200
