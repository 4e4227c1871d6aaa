"""Service call: HTTP clients. The far side is a server that goes by the headers alone."""

import asyncio
import contextlib
import http.client
import io
import threading
import urllib.request
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection as ConnectionImportedBefore
from typing import Any
from urllib.request import urlopen as urlopen_imported_before

import aiohttp
import httpx
import pycurl
import requests
import requests.adapters
import urllib3
from httpx import get as httpx_get_imported_before
from opentelemetry import context as otel_context
from opentelemetry.propagate import extract
from requests import get as requests_get_imported_before

from tests.boundaries import Program, boundary
from tests.boundaries.http_service import address, service

CONTRIB = [
    "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "opentelemetry.instrumentation.aiohttp_client:AioHttpClientInstrumentor",
    "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
    "opentelemetry.instrumentation.urllib:URLLibInstrumentor",
]


@boundary("requests")
def requests_get(b: Program) -> None:
    with service(b) as url:
        for key in "ab":
            with b.near(key):
                requests.get(f"{url}/{key}", timeout=30)


@boundary("requests: session made before, function imported before")
def requests_session(b: Program) -> None:
    session = requests.Session()
    with service(b) as url:
        with b.near("a"):
            session.get(f"{url}/a")
        with b.near("b"):
            requests_get_imported_before(f"{url}/b", timeout=30)


@boundary("requests: a subclass of Session, and of HTTPAdapter")
def requests_subclass(b: Program) -> None:
    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            return super().send(*args, **kwargs)

    class Session(requests.Session):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            return super().request(*args, **kwargs)

    with service(b) as url, Session() as session:
        session.mount("http://", Adapter())
        for key in "ab":
            with b.near(key):
                session.post(f"{url}/{key}", json={})


@boundary("requests: redirect")
def requests_redirect(b: Program) -> None:
    with service(b) as url:
        for key in "ab":
            with b.near(key):
                requests.get(f"{url}/redirect/{key}", timeout=30)


@boundary("requests: retry by urllib3's Retry")
def requests_retry(b: Program) -> None:
    with service(b) as url, requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=urllib3.Retry(2, status_forcelist=[503])))
        for key in "ab":
            with b.near(key):
                session.get(f"{url}/flaky/{key}")


@boundary("requests from ThreadPoolExecutor.map")
def requests_pool(b: Program) -> None:
    with service(b) as url, ThreadPoolExecutor(2) as pool:
        for key in "ab":
            with b.near(key):
                list(pool.map(lambda _, key=key: requests.get(f"{url}/{key}", timeout=30), range(2)))


@boundary("requests: one prepared request sent from two places")
def requests_prepared(b: Program) -> None:
    with service(b) as url, requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", url + "/a"))
        with b.near("a"):
            session.send(prepared)
        with b.near("b"):
            prepared.url = url + "/b"
            session.send(prepared)


@boundary("requests: response hook that makes a request")
def requests_hook(b: Program) -> None:
    with service(b) as url, b.near("a"):
        requests.get(
            f"{url}/a",
            hooks={"response": lambda *_, **__: requests_get_imported_before(f"{url}/a", timeout=30)},
            timeout=30,
        )


@boundary("requests: failure first, then a request that succeeds")
def requests_failure(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            with contextlib.suppress(requests.ConnectionError):
                requests.get("http://127.0.0.1:1/", timeout=30)
            requests.get(f"{url}/a", timeout=30)
        with b.near("b"):
            requests.get(f"{url}/b", timeout=30)


@boundary("httpx.Client")
def httpx_client(b: Program) -> None:
    with service(b) as url, httpx.Client() as client:
        for key in "ab":
            with b.near(key):
                client.get(f"{url}/{key}")


@boundary("httpx.Client created before, function imported before, redirect")
def httpx_before(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            httpx_get_imported_before(f"{url}/a")
        with b.near("b"):
            client_made_before.get(f"{url}/redirect/b")


client_made_before = httpx.Client(follow_redirects=True)
session_made_before = requests.Session()
pool_made_before = urllib3.PoolManager()
opener_made_before = urllib.request.build_opener()


@boundary("httpx.AsyncClient in gather")
async def httpx_gather(b: Program) -> None:
    with service(b) as url:
        async with httpx.AsyncClient() as client:

            async def one(key: str) -> None:
                with b.near(key):
                    await client.get(f"{url}/{key}")

            await asyncio.gather(*(one(key) for key in "abc"))


@boundary("httpx streamed answer")
def httpx_stream(b: Program) -> None:
    with service(b) as url, httpx.Client() as client:
        for key in "ab":
            with b.near(key), client.stream("GET", f"{url}/{key}") as response:
                response.read()


@boundary("httpx in-process WSGI transport")
def httpx_wsgi(b: Program) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        token = otel_context.attach(
            extract({k[5:].lower(): v for k, v in environ.items() if k.startswith("HTTP_")}, otel_context.Context())
        )
        b.far()
        otel_context.detach(token)
        start_response("200 OK", [])
        return []

    with b.near(), httpx.Client(transport=httpx.WSGITransport(app)) as client:
        client.get("http://app/")


@boundary("aiohttp.ClientSession")
async def aiohttp_session(b: Program) -> None:
    with service(b) as url:
        async with aiohttp.ClientSession() as session:

            async def one(key: str) -> None:
                with b.near(key):
                    async with session.get(f"{url}/{key}") as response:
                        await response.read()

            await asyncio.gather(*(one(key) for key in "abc"))


@boundary("aiohttp redirect, aiohttp.request")
async def aiohttp_redirect(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            async with aiohttp.request("GET", f"{url}/redirect/a"):
                pass
        with b.near("b"):
            async with aiohttp.ClientSession(base_url=url) as session, session.post("/redirect/b", data=b"x"):
                pass


@boundary("aiohttp in a task")
async def aiohttp_task(b: Program) -> None:
    with service(b) as url:
        async with aiohttp.ClientSession() as session:
            for key in "ab":
                with b.near(key):
                    task = asyncio.create_task(session.get(f"{url}/{key}").__aenter__())
                    (await task).release()


@boundary("urllib3.PoolManager")
def urllib3_pool(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            pool_made_before.request("GET", f"{url}/a")
        with b.near("b"):
            urllib3.request("POST", f"{url}/redirect/b", body=b"x")


@boundary("urllib3 retry, pool of one host, connection by hand")
def urllib3_more(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            pool_made_before.request("GET", f"{url}/flaky/a", retries=urllib3.Retry(2, status_forcelist=[503]))
        with b.near("b"):
            urllib3.HTTPConnectionPool(address(url)).urlopen("GET", "/b")
        with b.near("c"):
            connection = urllib3.connection.HTTPConnection(*address(url).split(":"))
            connection.request("GET", "/c")
            connection.getresponse().read()
            connection.close()


@boundary("urllib.request.urlopen")
def urllib_urlopen(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            urllib.request.urlopen(f"{url}/a").close()
        with b.near("b"):
            urlopen_imported_before(urllib.request.Request(f"{url}/b", data=b"x", headers={"X": "1"})).close()
        with b.near("c"):
            opener_made_before.open(f"{url}/redirect/c").close()


@boundary("http.client.HTTPConnection")
def http_client(b: Program) -> None:
    with service(b) as url:
        connection = http.client.HTTPConnection(address(url))
        for key in "ab":
            with b.near(key):
                connection.request("GET", "/" + key)
                connection.getresponse().read()
        connection.close()


@boundary("http.client: imported before, headers line by line, body later")
def http_client_by_hand(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            connection = ConnectionImportedBefore(address(url))
            connection.putrequest("POST", "/a")
            connection.putheader("Content-Length", "2")
            connection.endheaders()
            connection.send(b"ab")
            connection.getresponse().read()
            connection.close()


@boundary("http.client: the answer is read in another thread")
def http_client_thread(b: Program) -> None:
    with service(b) as url:
        for key in "ab":
            connection = http.client.HTTPConnection(address(url))
            with b.near(key):
                connection.request("GET", "/" + key)
            thread = threading.Thread(target=lambda c=connection: c.getresponse().read())
            thread.start()
            thread.join()
            b.clean("after the answer was read elsewhere")
            connection.close()


@boundary("xmlrpc.client")
def xmlrpc_client(b: Program) -> None:
    with service(b) as url, b.near("RPC2"), contextlib.suppress(Exception):
        xmlrpc.client.ServerProxy(url).add(1, 2)


@boundary("pycurl")
def pycurl_perform(b: Program) -> None:
    with service(b) as url:
        curl = pycurl.Curl()
        for key in "ab":
            curl.setopt(curl.URL, f"{url}/{key}")
            curl.setopt(curl.HTTPHEADER, ["X-Own: 1"])
            curl.setopt(curl.WRITEDATA, io.BytesIO())
            with b.near(key):
                curl.perform()
        curl.close()


@boundary("pycurl.CurlMulti")
def pycurl_multi(b: Program) -> None:
    with service(b) as url:
        multi = pycurl.CurlMulti()
        handles = []
        for key in "ab":
            curl = pycurl.Curl()
            curl.setopt(curl.URL, f"{url}/{key}")
            curl.setopt(curl.WRITEDATA, io.BytesIO())
            with b.near(key):
                multi.add_handle(curl)
            handles.append(curl)
        running = 2
        while running:
            _, running = multi.perform()
            multi.select(0.1)
        for curl in handles:
            multi.remove_handle(curl)
