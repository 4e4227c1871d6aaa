"""Entry: URLs that are to have no span. What is done there belongs to the caller all the same."""

from tests.boundaries import Program, boundary
from tests.calls.running import aiohttp_web, asgi, ask, here, in_thread, wsgi

FIRST = "import os; os.environ['OTEL_PYTHON_EXCLUDED_URLS'] = '/quiet'"
CONTRIB = [
    "opentelemetry.instrumentation.flask:FlaskInstrumentor",
    "opentelemetry.instrumentation.django:DjangoInstrumentor",
    "opentelemetry.instrumentation.starlette:StarletteInstrumentor",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",
    "opentelemetry.instrumentation.aiohttp_server:AioHttpServerInstrumentor",
]


def call_twice(b: Program, serving, app) -> None:
    with serving(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/quiet-{key}", here()).status == 200


@boundary("excluded URL, WSGI application", expect="direct")
def of_wsgi(b: Program) -> None:
    def app(environ, start_response):
        b.far(environ["PATH_INFO"][-1])
        start_response("200 OK", [])
        return [b"done"]

    call_twice(b, wsgi, app)


@boundary("excluded URL, ASGI application", expect="direct")
def of_asgi(b: Program) -> None:
    async def app(scope, receive, send):
        b.far(scope["path"][-1])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    call_twice(b, asgi, app)


@boundary("excluded URL, Flask: view, stream and teardown", expect="direct")
def of_flask(b: Program) -> None:
    import flask

    app = flask.Flask(__name__)

    @app.get("/<path>")
    def show(path):
        def body():
            yield "first"
            b.far(path[-1])

        b.far(path[-1])
        return flask.Response(body())

    @app.teardown_request
    def leave(_):
        b.far(flask.request.path[-1])

    call_twice(b, wsgi, app)


urlpatterns = []


def by_django(b: Program, serving, view, application) -> None:
    import django
    from django.conf import settings
    from django.urls import path

    settings.configure() if not settings.configured else None
    settings.ROOT_URLCONF, settings.ALLOWED_HOSTS, settings.SECRET_KEY = __name__, ["*"], "tests"
    urlpatterns[:] = [path("<path>", view)]
    django.setup()
    call_twice(b, serving, application())


@boundary("excluded URL, Django by WSGI", expect="direct")
def of_django(b: Program) -> None:
    from django.core.wsgi import get_wsgi_application
    from django.http import StreamingHttpResponse

    def view(request, path):
        def body():
            yield b"first"
            b.far(path[-1])

        b.far(path[-1])
        return StreamingHttpResponse(body())

    by_django(b, wsgi, view, get_wsgi_application)


@boundary("excluded URL, Django by ASGI", expect="direct")
def of_django_by_asgi(b: Program) -> None:
    from django.core.asgi import get_asgi_application
    from django.http import StreamingHttpResponse

    async def view(request, path):
        async def body():
            yield b"first"
            b.far(path[-1])

        b.far(path[-1])
        return StreamingHttpResponse(body())

    by_django(b, asgi, view, get_asgi_application)


@boundary("excluded URL, Starlette: handler and background task", expect="direct")
def of_starlette(b: Program) -> None:
    from starlette import applications
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def show(request):
        key = request.url.path[-1]
        b.far(key)
        return PlainTextResponse("done", background=BackgroundTask(b.far, key))

    call_twice(b, asgi, applications.Starlette(routes=[Route("/{path}", show)]))


@boundary("excluded URL, FastAPI", expect="direct")
def of_fastapi(b: Program) -> None:
    import fastapi

    app = fastapi.FastAPI()

    @app.get("/{path}")
    def show(path: str):
        b.far(path[-1])
        return "done"

    call_twice(b, asgi, app)


@boundary("excluded URL, aiohttp.web: handler and stream", expect="direct")
def of_aiohttp(b: Program) -> None:
    from aiohttp import web

    async def show(request):
        async def body():
            yield b"first"
            b.far(request.path[-1])

        b.far(request.path[-1])
        return web.Response(body=body())

    app = web.Application()
    app.router.add_get("/{path}", show)
    call_twice(b, aiohttp_web, app)


@boundary("excluded URL, http.server", expect="direct")
def of_http_server(b: Program) -> None:
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            b.far(self.path[-1])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        with in_thread(server.serve_forever, server.shutdown):
            for key in "ab":
                with b.near(key):
                    assert ask(server.server_port, f"/quiet-{key}", here()).status == 200


@boundary("a URL beside the excluded ones")
def of_others(b: Program) -> None:
    import flask

    app = flask.Flask(__name__)

    @app.get("/<path>")
    def show(path):
        b.far(path)
        return "done"

    with wsgi(app) as port:
        for path in ("quiet-a", "b"):
            with b.near(path):
                assert ask(port, f"/{path}", here()).status == 200
