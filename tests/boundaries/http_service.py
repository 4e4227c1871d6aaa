"""An HTTP service that goes by the headers alone, for the programs of the families that call one."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.propagate import extract

from tests.boundaries import Program


@contextlib.contextmanager
def service(b: Program) -> Iterator[str]:
    """Its far span is named after the path: `/a` does `far a`. `/redirect/a` leads to `/a`, `/flaky/a` fails once, `/away/a`
    leads to `/a` by another name of the host, `/auth/a` asks for a password first, `/stream/a` answers in pieces, `/late/a`
    after a while, `/drop/a` never."""
    failed: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if len(self.headers.get_all("traceparent") or ()) > 1:
                b.leak("two traceparent headers")
            *kind, key = self.path.partition("?")[0].strip("/").split("/")
            port = self.server.server_address[1]
            if kind in (["redirect"], ["away"]):
                self.send_response(307)
                host = f"http://localhost:{port}" if kind == ["away"] else ""
                self.send_header("Location", f"{host}/{key}")
            elif kind == ["flaky"] and key not in failed:
                failed.add(key)
                self.send_response(503)
            elif kind == ["auth"] and "Authorization" not in self.headers:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')
            else:
                token = otel_context.attach(extract({k.lower(): v for k, v in self.headers.items()}))
                b.far(key)
                otel_context.detach(token)
                if kind == ["drop"]:
                    self.close_connection = True
                    return
                if kind == ["late"]:
                    time.sleep(1)
                self.send_response(200)
                if kind == ["stream"]:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for _ in range(5):
                        self.wfile.write(b"3\r\nabc\r\n")
                    self.wfile.write(b"0\r\n\r\n")
                    return
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # who goes away in the middle

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def address(url: str) -> str:
    return url.removeprefix("http://")


def recorded() -> list[dict[str, Any]]:
    """The spans that were exported so far."""
    with open(os.environ["BOUNDARY_OUT"]) as lines:
        return [record for record in map(json.loads, lines) if "kind" in record]


def calls() -> list[dict[str, Any]]:
    """The CLIENT spans among them."""
    return [span for span in recorded() if span["kind"] == "CLIENT"]


def failures() -> list[str]:
    """What ended the calls that failed, as their spans say."""
    return [span["attributes"]["error.type"] for span in calls() if "error.type" in span["attributes"]]
