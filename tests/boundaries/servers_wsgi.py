"""Entry: WSGI servers. Plain applications, served by wsgiref and by servers that read the body in their own way."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from wsgiref.simple_server import ServerHandler, WSGIServer

from tests.boundaries import Program, boundary
from tests.calls.running import ask, here, wsgi

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
    import socket

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
