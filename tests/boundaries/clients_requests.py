"""Service call: HTTP clients. What programs do with requests beyond a plain call."""

import contextlib
import http.client
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import requests
import requests.adapters
import urllib3
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from requests.auth import HTTPDigestAuth
from requests.structures import CaseInsensitiveDict

from tests.boundaries import Program, boundary
from tests.boundaries.http_service import address, calls, failures, service

CONTRIB = [
    "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
    "opentelemetry.instrumentation.urllib:URLLibInstrumentor",
]


@boundary("requests: body read after the span, in pieces and in lines")
def read_later(b: Program) -> None:
    with service(b) as url, requests.Session() as session:
        for key in "ab":
            with b.near(key):
                response = session.get(f"{url}/stream/{key}", stream=True)
            pieces = response.iter_content(3) if key == "a" else response.iter_lines()
            for _ in pieces:
                b.clean("between pieces of the body")


@boundary("requests: headers of the caller's, of whatever kind, are sent and not changed")
def own_headers(b: Program) -> None:
    stale = f"00-{'1' * 32}-{'2' * 16}-01"
    with service(b) as url, requests.Session() as session:
        given: list[Any] = [None, {"X-Own": "1"}, CaseInsensitiveDict({"TraceParent": stale}), {"traceparent": b"x"}]
        for key, headers in zip("abcd", given, strict=True):
            before = dict(headers or {})
            with b.near(key):
                session.get(f"{url}/{key}", headers=headers)
            assert dict(headers or {}) == before
        bare = requests.Request("GET", f"{url}/e").prepare()
        bare.headers = None  # type: ignore[assignment]
        with b.near("e"):
            session.send(bare)


@boundary("requests: redirect to another host, redirects followed by hand")
def redirects(b: Program) -> None:
    with service(b) as url, requests.Session() as session:
        with b.near("a"):
            session.get(f"{url}/away/a")
        with b.near("b"):
            response = session.get(f"{url}/redirect/b", allow_redirects=False)
            assert response.next is not None
            session.send(response.next)
        with b.near("c"):
            response = session.get(f"{url}/redirect/c", allow_redirects=False)
            assert len(list(session.resolve_redirects(response, response.request))) == 1


@boundary("requests: digest authentication")
def digest(b: Program) -> None:
    with service(b) as url:
        for key in "ab":
            with b.near(key):
                assert requests.get(f"{url}/auth/{key}", auth=HTTPDigestAuth("me", "x"), timeout=30).status_code == 200


@boundary("requests: hooks of a session see the caller's span")
def hooks(b: Program) -> None:
    seen = []
    with service(b) as url, requests.Session() as session:
        session.hooks["response"].append(lambda *_, **__: seen.append(trace.get_current_span()))
        for key in "ab":
            with b.near(key) as near:
                session.get(f"{url}/redirect/{key}")
            if os.environ["BOUNDARY_MODE"] == "tracefill":
                assert [near, near] == seen[-2:]


@boundary("requests: a session that threads share, their spans side by side")
def shared(b: Program) -> None:
    with service(b) as url, requests.Session() as session:

        def work(key: str) -> None:
            with b.near(key):
                for _ in range(5):
                    session.get(f"{url}/{key}")

        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(work, "abcd"))) == 4


@boundary("requests: workers that were there before, fed through a queue")
def workers(b: Program) -> None:
    work: queue.Queue[str] = queue.Queue()
    with service(b) as url, requests.Session() as session:

        def forever() -> None:
            while target := work.get():
                session.get(target)
                work.task_done()

        threads = [threading.Thread(target=forever) for _ in range(3)]
        for thread in threads:
            thread.start()
        for key in "abc":
            with b.near(key):
                work.put(f"{url}/{key}")
                work.put(f"{url}/{key}")
        work.join()
        for _ in threads:
            work.put("")
        for thread in threads:
            thread.join()


@boundary("requests: a timeout and an answer that never comes are errors that end")
def failing(b: Program) -> None:
    with service(b) as url:
        with b.near("a"), contextlib.suppress(requests.Timeout):
            requests.get(f"{url}/late/a", timeout=0.2)
        with b.near("b"), contextlib.suppress(requests.ConnectionError):
            requests.get(f"{url}/drop/b", timeout=30)
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert len(calls()) == 2, calls()
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        assert failures() == ["requests.exceptions.ReadTimeout", "requests.exceptions.ConnectionError"]


@boundary("requests: an adapter of one's own that rides on http.client")
def adapter(b: Program) -> None:
    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> requests.Response:
            connection = http.client.HTTPConnection(address(url))
            connection.request(request.method, request.path_url, headers=dict(request.headers))
            response = requests.Response()
            response.status_code = connection.getresponse().status
            response.request, response.url = request, request.url
            connection.close()
            return response

        def close(self) -> None:
            pass

    with service(b) as url, requests.Session() as session:
        session.mount("http://", Adapter())
        for key in "ab":
            with b.near(key):
                session.get(f"{url}/{key}")


@boundary("HTTP clients where instrumentation is suppressed", expect="own root")
def suppressed(b: Program) -> None:
    with service(b) as url, b.near("a"):
        for suppress in (suppress_instrumentation, suppress_http_instrumentation):
            for get in (requests.get, httpx.get, urllib3.PoolManager().urlopen):
                with suppress():
                    get(*(("GET",) if get not in (requests.get, httpx.get) else ()), f"{url}/a")  # type: ignore[operator]


@boundary("requests: a span that a generator holds open from page to page")
def pages(b: Program) -> None:
    with service(b) as url:

        def generate(key: str) -> Any:
            with b.span(f"near{key}"):
                while True:
                    yield requests.get(f"{url}/{key}", timeout=30)

        if "tracefill" not in os.environ["BOUNDARY_MODE"]:
            requests.get(f"{url}/a", timeout=30)
            return
        first, second = generate("a"), generate("b")
        for _ in range(3):
            next(first)
            next(second)
            b.clean("between two pages")
        first.close()
        second.close()
        b.clean("after the last page")


@boundary("requests: a generator that is given up half-way")
def given_up(b: Program) -> None:
    with service(b) as url:

        def generate() -> Any:
            with b.near("a"):
                while True:
                    yield requests.get(f"{url}/a", timeout=30)

        generator = generate()
        next(generator)
        generator.close()
        b.clean("after a generator was closed")
        with b.near("b"):
            requests.get(f"{url}/b", timeout=30)
