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


@boundary("Django class-based view, WSGI")
def wsgi_class(b: Program) -> None:
    from django.http import HttpResponse
    from django.views import View

    class Show(View):
        def get(self, request, key):
            b.far(key)
            return HttpResponse("done")

    project(Show.as_view())
    by_wsgi(b)


@boundary("Django async class-based view: asyncio.to_thread, ASGI")
def asgi_class(b: Program) -> None:
    from django.http import HttpResponse
    from django.views import View

    class Show(View):
        async def get(self, request, key):
            await asyncio.gather(asyncio.to_thread(b.far, key), asyncio.to_thread(b.far, key))
            return HttpResponse("done")

    project(Show.as_view())
    by_asgi(b)


@boundary("Django asynchronous middleware opens a span, ASGI")
def asgi_middleware(b: Program) -> None:
    project(coroutine(b), middleware=[f"{__name__}.opening_asynchronously"])
    by_asgi(b)


def opening_asynchronously(get_response):
    from asgiref.sync import markcoroutinefunction

    async def middleware(request):
        with Program().span("middleware"):
            return await get_response(request)

    markcoroutinefunction(middleware)
    return middleware


opening_asynchronously.async_capable = True
opening_asynchronously.sync_capable = False


@boundary("Django middleware answers for an exception")
def wsgi_exception(b: Program) -> None:
    def view(request, key):
        b.far(key)
        raise KeyError

    project(view, middleware=[f"{__name__}.Sorry"])
    by_wsgi(b)


class Sorry:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, exception):
        from django.http import HttpResponse

        with Program().span("sorry"):
            Program().far(request.resolver_match.kwargs["key"])
        return HttpResponse("sorry")


@boundary("Django view fails: next request on that thread is clean, WSGI and ASGI")
def failing(b: Program) -> None:
    import logging

    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    def view(request, key):
        b.far(key)
        raise ValueError("the user's own")

    project(view)
    logging.disable()
    for serve, application, keys in ((wsgi, get_wsgi_application, "ab"), (asgi, get_asgi_application, "cd")):
        with serve(application()) as port:
            for key in keys:
                with b.near(key):
                    assert ask(port, f"/{key}", here()).status == 500


@boundary("Django events that go on (SSE), fed by a task of the request, ASGI")
def asgi_events(b: Program) -> None:
    from django.http import StreamingHttpResponse

    async def view(request, key):
        async def body():
            queue = asyncio.Queue()

            async def feed():
                for _ in range(2):
                    b.far(key)
                    await queue.put("data: x\n\n")
                await queue.put(None)

            task = asyncio.create_task(feed())
            while (event := await queue.get()) is not None:
                b.far(key)
                yield event
            await task

        return StreamingHttpResponse(body(), content_type="text/event-stream")

    project(view)
    by_asgi(b)


@boundary("Django test client within a span")
def test_client(b: Program) -> None:
    from django.test import Client

    project(plain(b))
    for key in "ab":
        with b.near(key):
            assert Client().get(f"/{key}").status_code == 200
