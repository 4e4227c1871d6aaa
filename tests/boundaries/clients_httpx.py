"""Service call: HTTP clients. What programs do with httpx beyond a plain call."""

import asyncio
import contextlib
import io
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import requests
import urllib3
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import extract

from tests.boundaries import Program, boundary
from tests.boundaries.http_service import calls, failures, service

CONTRIB = [
    "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
]


@boundary("httpx: event hooks see the caller's span, and make requests")
def hooks(b: Program) -> None:
    seen = []
    with service(b) as url:

        def on_request(request: httpx.Request) -> None:
            request.headers["X-Hook"] = "1"
            seen.append(trace.get_current_span())

        def on_response(_: httpx.Response) -> None:
            seen.append(trace.get_current_span())
            requests.get(f"{url}/a", timeout=30)

        with httpx.Client(event_hooks={"request": [on_request], "response": [on_response]}) as client:
            with b.near("a") as near:
                client.get(f"{url}/a")
        if "tracefill" in os.environ["BOUNDARY_MODE"]:
            assert seen == [near, near]


@boundary("httpx: a transport of one's own that tries again, and mounts")
def retrying(b: Program) -> None:
    class Retrying(httpx.BaseTransport):
        def __init__(self) -> None:
            self.inner = httpx.HTTPTransport()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = self.inner.handle_request(request)
            if response.status_code == 503:
                response.close()
                response = self.inner.handle_request(request)
            return response

        def close(self) -> None:
            self.inner.close()

    with service(b) as url:
        with httpx.Client(transport=Retrying()) as client:
            for key in "ab":
                with b.near(key):
                    assert client.get(f"{url}/flaky/{key}").status_code == 200
        with httpx.Client(mounts={"http://127.0.0.1": httpx.HTTPTransport(), "all://": None}) as client, b.near("c"):
            client.get(f"{url}/c")


class OverRequests(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        got = requests.request(request.method, str(request.url), headers=dict(request.headers), timeout=30)
        return httpx.Response(got.status_code, content=got.content)


class OverUrllib3(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        got = urllib3.request(request.method, str(request.url), headers=dict(request.headers), body=request.read())
        return httpx.Response(got.status, content=got.data)


class OverSocket(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        lines = [f"{request.method} {request.url.path} HTTP/1.1", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in request.headers.items() if name != "connection"]
        with socket.create_connection((request.url.host, request.url.port)) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            while connection.recv(65536):
                pass
        return httpx.Response(200)


@boundary("httpx: transports of one's own that ride on something else")
def riding(b: Program) -> None:
    with service(b) as url:
        for key, transport in zip("abc", (OverRequests(), OverUrllib3(), OverSocket()), strict=True):
            with httpx.Client(transport=transport) as client, b.near(key):
                client.get(f"{url}/{key}")
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        assert [call["scope"] for call in calls()] == ["tracefill.calls.httpx"] * 3


@boundary("httpx: a transport of one's own that asks somebody else first")
def asking_first(b: Program) -> None:
    class WithToken(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            requests.post(f"{url}/a", timeout=30)
            return super().handle_request(request)

    with service(b) as url, httpx.Client(transport=WithToken()) as client, b.near("a"):
        client.get(f"{url}/a")


@boundary("httpx: a subclass, requests built by hand, authentication, redirects")
def subclass(b: Program) -> None:
    class Client(httpx.Client):
        def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
            return super().send(request, **settings)

    with service(b) as url, Client(follow_redirects=True) as client:
        request = client.build_request("POST", f"{url}/a", json={"x": 1})
        with b.near("a"):
            client.send(request)
        assert "traceparent" not in request.headers or os.environ["BOUNDARY_MODE"] != "tracefill"
        with b.near("b"):
            assert client.get(f"{url}/auth/b", auth=httpx.DigestAuth("me", "x")).status_code == 200
        with b.near("c"):
            client.get(f"{url}/away/c")
        with b.near("d"):
            response = client.send(client.build_request("GET", f"{url}/stream/d"), stream=True)
        for _ in response.iter_bytes():
            b.clean("between pieces of the body")
        with b.near("e"):
            client.post(f"{url}/e", content=iter([b"a", b"b"]))
        with b.near("f"):
            client.post(f"{url}/f", files={"file": io.BytesIO(b"x")})
        with b.near("g"):
            client.get(f"{url}/g", headers=[("X-Own", "1"), ("X-Own", "2"), ("TraceParent", "00-1-1-01")])
        with b.near("h"):
            response = httpx.get(f"{url}/redirect/h")
            assert response.next_request is not None
            client.send(response.next_request)


@boundary("httpx: async streams, bodies, timeouts, cancelled requests, tasks that outlive the span")
async def asynchronous(b: Program) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0)
        yield b"b"

    with service(b) as url:
        async with httpx.AsyncClient(follow_redirects=True) as client:
            with b.near("a"):
                async with client.stream("GET", f"{url}/stream/a") as response:
                    assert b"".join([piece async for piece in response.aiter_bytes()]) == b"abc" * 5
            with b.near("b"), contextlib.suppress(httpx.ReadTimeout):
                await client.get(f"{url}/late/b", timeout=0.2)
            with b.near("c"), contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.get(f"{url}/late/c"), 0.2)
            with b.near("d"):
                tasks = [asyncio.create_task(client.get(f"{url}/d")) for _ in range(3)]
            await asyncio.gather(*tasks)
            with b.near("e"):
                await client.get(f"{url}/auth/e", auth=httpx.DigestAuth("me", "x"))
            with b.near("f"):
                await client.post(f"{url}/redirect/f", content=b"x")
            with b.near("g"):
                await client.post(f"{url}/g", content=body())
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        assert failures() == ["httpx.ReadTimeout", "401"]


@boundary("httpx: a span that an async generator holds open from page to page")
async def pages(b: Program) -> None:
    async with httpx.AsyncClient() as client:
        with service(b) as url:

            async def generate(key: str) -> Any:
                with b.span(f"near{key}"):
                    for _ in range(3):
                        yield await client.get(f"{url}/{key}")

            if "tracefill" not in os.environ["BOUNDARY_MODE"]:
                await client.get(f"{url}/a")
                return
            first, second = generate("a"), generate("b")
            for _ in range(3):
                await anext(first)
                await anext(second)
                b.clean("between two pages")
            await first.aclose()
            await second.aclose()


@boundary("httpx in-process ASGI transport")
async def in_process(b: Program) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        token = otel_context.attach(extract(headers, otel_context.Context()))
        b.far()
        otel_context.detach(token)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        with b.near():
            await client.get("http://app/")
