"""Entry: Django, served by WSGI (wsgiref) and by ASGI (uvicorn)."""

import asyncio
import threading

from tests.boundaries import Program, boundary
from tests.calls.running import asgi, ask, here, wsgi

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.django:DjangoInstrumentor",
]

urlpatterns = []


def project(*views, middleware=()):
    """A Django project with these views, and settings of its own below those that contrib may have made."""
    import django
    from django.conf import settings
    from django.urls import path

    if not settings.configured:
        settings.configure()
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["*"]
    settings.SECRET_KEY = "tests"
    settings.MIDDLEWARE = [*getattr(settings, "MIDDLEWARE", []), *middleware]
    urlpatterns[:] = [path("<key>", view) for view in views]
    django.setup()


def call_twice(b: Program, serve, app):
    with serve(app) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 200


def by_wsgi(b: Program):
    from django.core.wsgi import get_wsgi_application

    call_twice(b, wsgi, get_wsgi_application())


def by_asgi(b: Program):
    from django.core.asgi import get_asgi_application

    call_twice(b, asgi, get_asgi_application())


def plain(b):
    from django.http import HttpResponse

    def view(request, key):
        b.far(key)
        return HttpResponse("done")

    return view


def coroutine(b):
    from django.http import HttpResponse

    async def view(request, key):
        await asyncio.sleep(0)
        b.far(key)
        return HttpResponse("done")

    return view


def streamed(b):
    from django.http import StreamingHttpResponse

    def view(request, key):
        def body():
            yield b"first"
            b.far(key)
            yield b"second"

        return StreamingHttpResponse(body())

    return view


@boundary("Django view, WSGI")
def wsgi_view(b: Program) -> None:
    project(plain(b))
    by_wsgi(b)


@boundary("Django async view, WSGI")
def wsgi_async_view(b: Program) -> None:
    project(coroutine(b))
    by_wsgi(b)


@boundary("Django StreamingHttpResponse, WSGI")
def wsgi_streaming(b: Program) -> None:
    project(streamed(b))
    by_wsgi(b)


@boundary("Django request_finished signal, WSGI")
def wsgi_finished(b: Program) -> None:
    from django.core.signals import request_finished
    from django.http import HttpResponse

    seen = []

    def view(request, key):
        seen.append(key)
        return HttpResponse("done")

    def finished(**_):
        b.far(seen[-1])

    project(view)
    request_finished.connect(finished)
    by_wsgi(b)


@boundary("Django FileResponse, WSGI: closed after it was sent")
def wsgi_file(b: Program) -> None:
    import io

    from django.http import FileResponse

    class File(io.BytesIO):
        def close(self):
            if not self.closed:
                b.far(self.key)
            super().close()

    def view(request, key):
        file = File(b"done")
        file.key = key
        return FileResponse(file)

    project(view)
    by_wsgi(b)


@boundary("Django middleware opens a span")
def wsgi_middleware(b: Program) -> None:
    project(plain(b), middleware=[f"{__name__}.opening"])
    by_wsgi(b)


def opening(get_response):
    def middleware(request):
        with Program().span("middleware"):
            return get_response(request)

    return middleware


@boundary("Django view hands work to a thread")
def wsgi_thread(b: Program) -> None:
    from django.http import HttpResponse

    def view(request, key):
        thread = threading.Thread(target=b.far, args=(key,))
        thread.start()
        thread.join()
        return HttpResponse("done")

    project(view)
    by_wsgi(b)


@boundary("Django view, ASGI")
def asgi_view(b: Program) -> None:
    project(plain(b))
    by_asgi(b)


@boundary("Django async view, ASGI")
def asgi_async_view(b: Program) -> None:
    project(coroutine(b))
    by_asgi(b)


@boundary("Django StreamingHttpResponse of an async generator, ASGI")
def asgi_streaming(b: Program) -> None:
    from django.http import StreamingHttpResponse

    async def view(request, key):
        async def body():
            yield b"first"
            b.far(key)
            yield b"second"

        return StreamingHttpResponse(body())

    project(view)
    by_asgi(b)


@boundary("Django sync_to_async in an async view, ASGI")
def asgi_thread(b: Program) -> None:
    from asgiref.sync import sync_to_async
    from django.http import HttpResponse

    async def view(request, key):
        await sync_to_async(b.far)(key)
        return HttpResponse("done")

    project(view)
    by_asgi(b)


@boundary("Django views without a context have roots of their own", expect="own root")
def alone(b: Program) -> None:
    from django.core.wsgi import get_wsgi_application

    project(plain(b))
    with b.near(), wsgi(get_wsgi_application()) as port:
        for key in "ab":
            assert ask(port, f"/{key}").status == 200
