"""Service call: HTTP clients. What programs do with urllib3, the standard library's clients and pycurl beyond a plain call."""

import asyncio
import contextlib
import http.client
import io
import os
import socket
import socketserver
import threading
import types
import urllib.request
import xmlrpc.client
import xmlrpc.server
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError

import httpx
import pycurl
import requests
import urllib3

from tests.boundaries import Program, boundary
from tests.boundaries.http_service import address, calls, failures, service

CONTRIB = [
    "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
    "opentelemetry.instrumentation.urllib:URLLibInstrumentor",
]


@boundary("urllib3: answers read later, redirects to another host, retries, forms")
def urllib3_more(b: Program) -> None:
    with service(b) as url, urllib3.PoolManager() as pool:
        with b.near("a"):
            response = pool.request("GET", f"{url}/stream/a", preload_content=False)
        for _ in response.stream(3):
            b.clean("between pieces of the body")
        with b.near("b"):
            pool.request("GET", f"{url}/away/b")
        with b.near("c"):
            retries = urllib3.Retry(3, status_forcelist=[503], allowed_methods=None)
            pool.urlopen("POST", f"{url}/flaky/c", body=b"x", retries=retries)
        with b.near("d"):
            pool.request_encode_body("POST", f"{url}/d", fields={"a": "b"})
        with b.near("e"):
            pool.request("GET", f"{url}/e", headers=types.MappingProxyType({"X-Own": "1"}))
        with b.near("f"), urllib3.ProxyManager(url) as proxy:
            proxy.request("GET", "http://shop.example/f")


@boundary("urllib3: a timeout and an answer that never comes are errors that end")
def urllib3_failing(b: Program) -> None:
    with service(b) as url, urllib3.PoolManager(retries=False) as pool:
        for key, path in (("a", "late"), ("b", "drop")):
            with b.near(key), contextlib.suppress(urllib3.exceptions.HTTPError):
                pool.request("GET", f"{url}/{path}/{key}", timeout=0.5)
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        assert len(failures()) == len(calls()) == 2, calls()


class Handler(urllib.request.BaseHandler):
    """Sees a request before it is sent, as a program's own cache or log would."""

    handler_order = 1

    def http_open(self, request: Any) -> None:
        assert request.headers.get("X-own") == "1", request.headers


@boundary("urllib.request: a Request used again, handlers of the program's own")
def urllib_request(b: Program) -> None:
    opener = urllib.request.build_opener(Handler)
    with service(b) as url:
        request = urllib.request.Request(f"{url}/a", headers={"X-Own": "1"})
        with b.near("a"):
            opener.open(request).close()
            opener.open(request).close()
        assert request.headers == {"X-own": "1"} or "contrib" in os.environ["BOUNDARY_MODE"]
        with b.near("b"):
            request.full_url = f"{url}/b"
            urllib.request.urlopen(request).close()
        urllib.request.install_opener(opener)
        with b.near("c"):
            urllib.request.urlopen(urllib.request.Request(f"{url}/c", headers={"X-Own": "1"})).close()


@boundary("urllib.request: redirects, retrieved files, streams, authentication, errors, proxies")
def urllib_more(b: Program) -> None:
    with service(b) as url:
        with b.near("a"):
            urllib.request.urlopen(f"{url}/away/a").close()
        with b.near("b"):
            urllib.request.urlretrieve(f"{url}/b")
        with b.near("c"):
            response = urllib.request.urlopen(f"{url}/stream/c")
        assert response.read() == b"abc" * 5
        with b.near("d"):
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, url, "me", "x")
            urllib.request.build_opener(urllib.request.HTTPDigestAuthHandler(passwords)).open(f"{url}/auth/d").close()
        with b.near("e"):
            with contextlib.suppress(HTTPError):
                urllib.request.urlopen(f"{url}/flaky/e")
            urllib.request.urlopen(f"{url}/flaky/e").close()
        with b.near("f"):
            urllib.request.build_opener(urllib.request.ProxyHandler({"http": url})).open(
                "http://shop.example/f"
            ).close()
        with b.near("g"), contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/late/g", timeout=0.2)


@boundary("http.client: headers in many ways, a connection used again after all that can happen to it")
def http_client(b: Program) -> None:
    with service(b) as url:
        connection = http.client.HTTPConnection(address(url))
        with b.near("a"):
            connection.putrequest("GET", "/a", skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", "shop.example")
            connection.putheader(b"TraceParent", b"00-1-1-01")  # type: ignore[arg-type]
            connection.endheaders()
            connection.getresponse().read()
        with b.near("b"):
            chunked = {"Transfer-Encoding": "chunked"}
            connection.request("POST", "/b", body=iter([b"a", b"b"]), encode_chunked=True, headers=chunked)
            connection.getresponse().read()
        with b.near("c"):
            connection.request("GET", "/stream/c", headers={"TRACEPARENT": "x", "traceparent": "y"})
            response = connection.getresponse()
        b.clean("before the body is read")
        assert response.read() == b"abc" * 5
        with b.near("d"):
            connection.request("GET", "/drop/d")
            with contextlib.suppress(http.client.HTTPException, OSError):
                connection.getresponse()
        connection.close()
        with b.near("e"):
            connection.request("GET", "/e")
        with b.near("f"):
            connection.getresponse().read()
            connection.request("GET", "/f")
            connection.getresponse().read()
        connection.close()


@boundary("http.client: through a tunnel")
def tunnel(b: Program) -> None:
    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert b"traceparent" not in self.request.recv(65536).lower()
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            host, port = address(url).split(":")
            with socket.create_connection((host, int(port))) as onward:
                onward.sendall(self.request.recv(65536))
                self.request.sendall(onward.recv(65536))

    with service(b) as url, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        connection = http.client.HTTPConnection(*proxy.server_address)
        connection.set_tunnel("shop.example", 80)
        with b.near("a"):
            connection.request("GET", "/a")
            connection.getresponse().read()
        connection.close()
        proxy.shutdown()
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert [call["attributes"]["url.full"] for call in calls()] == ["http://shop.example/a"]


@boundary("xmlrpc: both sides, a transport of one's own, several calls at once")
def xmlrpc_both(b: Program) -> None:
    class Transport(xmlrpc.client.Transport):
        def send_headers(self, connection: Any, headers: Any) -> None:
            super().send_headers(connection, [*headers, ("X-Own", "1")])

    with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True) as server:
        server.register_function(b.far, "work")
        server.register_multicall_functions()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with xmlrpc.client.ServerProxy(
            f"http://127.0.0.1:{server.server_address[1]}", transport=Transport(), allow_none=True
        ) as proxy:
            for key in "ab":
                with b.near(key):
                    proxy.work(key)
            with b.near("c"):
                several = xmlrpc.client.MultiCall(proxy)
                several.work("c")
                several.work("c")
                several()
        server.shutdown()


@boundary("pycurl: headers before and after, bodies, redirects to another host, a subclass")
def curl(b: Program) -> None:
    class Curl(pycurl.Curl):  # type: ignore[misc]
        pass

    with service(b) as url:
        handle = pycurl.Curl()
        with b.near("a"):
            handle.setopt(handle.URL, f"{url}/a")
            handle.setopt(handle.POSTFIELDS, "x=1")
            handle.perform()
        with b.near("b"):
            handle.setopt(handle.HTTPHEADER, ("X-Own: 1", "X-Empty;", "TraceParent: 00-1-1-01"))
            handle.setopt(handle.URL, f"{url}/b".encode())
            handle.perform()
        with b.near("c"):
            handle.setopt_string(handle.URL, f"{url}/away/c")
            handle.setopt(handle.FOLLOWLOCATION, 1)
            handle.perform()
        handle.close()
        with b.near("d"):
            handle = Curl()
            handle.setopt(handle.URL, address(url) + "/d")
            handle.setopt(handle.UPLOAD, 1)
            handle.setopt(handle.READDATA, io.BytesIO(b"abc"))
            handle.setopt(handle.INFILESIZE, 3)
            handle.perform()
            handle.close()
        with b.near("e"):
            handle = pycurl.Curl()
            handle.setopt(handle.URL, f"{url}/stream/e")
            handle.setopt(handle.WRITEFUNCTION, lambda _: requests.get(f"{url}/e", timeout=30) and None)
            handle.perform()
            handle.close()


def drive(multi: Any) -> None:
    running = 1
    while running:
        _, running = multi.perform()
        multi.select(0.1)


@boundary("pycurl: a handle that goes from one CurlMulti to the next, and on by itself")
def curl_multi(b: Program) -> None:
    with service(b) as url:
        handle = pycurl.Curl()
        for key in "abc":
            multi = pycurl.CurlMulti()
            handle.setopt(handle.URL, f"{url}/{key}")
            with b.near(key):
                multi.add_handle(handle)
            drive(multi)
            if key == "a":
                multi.remove_handle(handle)
            multi.close()
        with b.near("d"):
            handle.setopt(handle.URL, f"{url}/d")
            handle.perform()
        handle.close()
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert len(calls()) == 4, calls()


@boundary("pycurl: timeouts and answers that never come are errors that end")
def curl_failing(b: Program) -> None:
    with service(b) as url:
        with b.near("a"), contextlib.closing(pycurl.Curl()) as handle, contextlib.suppress(pycurl.error):
            handle.setopt(handle.URL, f"{url}/late/a")
            handle.setopt(handle.TIMEOUT_MS, 200)
            handle.perform()
        with contextlib.closing(pycurl.Curl()) as handle, contextlib.closing(pycurl.CurlMulti()) as multi:
            handle.setopt(handle.URL, f"{url}/drop/b")
            with b.near("b"):
                multi.add_handle(handle)
            drive(multi)
            _, _, failed = multi.info_read()
            assert len(failed) == 1
            multi.remove_handle(handle)
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert failures() == ["pycurl.error"] * 2


@boundary("executor.map over each client")
def mapped(b: Program) -> None:
    def by_http_client(url: str) -> None:
        connection = http.client.HTTPConnection(address(url).partition("/")[0])
        connection.request("GET", "/" + url.rpartition("/")[2])
        connection.getresponse().read()
        connection.close()

    def by_pycurl(url: str) -> None:
        with contextlib.closing(pycurl.Curl()) as handle:
            handle.setopt(handle.URL, url)
            handle.perform()

    ways = [requests.get, httpx.get, lambda url: urllib3.request("GET", url), urllib.request.urlopen]
    with service(b) as url, ThreadPoolExecutor(3) as pool:
        for key, get in zip("abcdef", [*ways, by_http_client, by_pycurl], strict=True):
            with b.near(key):
                assert len(list(pool.map(get, [f"{url}/{key}"] * 4))) == 4


@boundary("clients that wait, called from a loop by to_thread and run_in_executor")
async def from_a_loop(b: Program) -> None:
    with service(b) as url:
        for key in "ab":
            with b.near(key):
                await asyncio.to_thread(requests.get, f"{url}/{key}", timeout=30)
                await asyncio.get_running_loop().run_in_executor(None, urllib.request.urlopen, f"{url}/{key}")
