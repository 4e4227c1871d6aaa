"""Entry: http.server and xmlrpc, of the standard library. Contrib has nothing for them."""

import contextlib
import http.client
import http.server
import socketserver
import threading
import xmlrpc.client
import xmlrpc.server
from concurrent.futures import ThreadPoolExecutor

from tests.boundaries import Program, boundary
from tests.calls.running import ask, here, in_thread, send

CONTRIB = []


@contextlib.contextmanager
def serving(handler, kind=http.server.ThreadingHTTPServer):
    handler.log_message = lambda *_: None
    with kind(("127.0.0.1", 0), handler) as server, in_thread(server.serve_forever, server.shutdown):
        yield server.server_port


def answer(handler, body=b"done"):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def handler_of(b: Program):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            b.far(self.path[1:])
            answer(self)

    return Handler


@boundary("http.server.ThreadingHTTPServer / socketserver handler")
def threading_server(b: Program) -> None:
    with serving(handler_of(b)) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("http.server.HTTPServer, one thread")
def one_thread(b: Program) -> None:
    with serving(handler_of(b), http.server.HTTPServer) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("http.server, a subclass that handles requests by itself")
def overriding(b: Program) -> None:
    class Handler(handler_of(b)):
        def handle_one_request(self):
            super().handle_one_request()
            b.clean("between requests")

        def parse_request(self):
            return super().parse_request()

    with serving(Handler) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("http.server, two requests on one connection")
def keep_alive(b: Program) -> None:
    with serving(handler_of(b)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for key in "ab":
            with b.near(key):
                headers = here()
                connection.request("GET", f"/{key}", headers=headers)
                connection.getresponse().read()
        connection.close()


@boundary("http.server, the handler fails")
def failing(b: Program) -> None:
    class Handler(handler_of(b)):
        def do_GET(self):
            b.far(self.path[1:])
            raise ConnectionResetError

    class Server(http.server.HTTPServer):
        def handle_error(self, *_):
            b.clean("after a failure")

    with serving(Handler, Server) as port:
        for key in "ab":
            with b.near(key), contextlib.suppress(Exception):
                ask(port, f"/{key}", here())


@boundary("http.server, requests without a context", expect="own root")
def alone(b: Program) -> None:
    with b.near(), serving(handler_of(b)) as port:
        for key in "ab":
            ask(port, f"/{key}")


@boundary("xmlrpc client/server")
def xmlrpc_call(b: Program) -> None:
    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True)
    server.register_function(b.far, "far")
    with server, in_thread(server.serve_forever, server.shutdown):
        for key in "ab":
            with b.near(key), xmlrpc.client.ServerProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
                proxy.far(key)


@boundary("xmlrpc server, another client")
def xmlrpc_server(b: Program) -> None:
    class Server(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer):
        pass

    server = Server(("127.0.0.1", 0), logRequests=False, allow_none=True)
    server.register_function(b.far, "far")
    with server, in_thread(server.serve_forever, server.shutdown):
        for key in "ab":
            with b.near(key):
                body = xmlrpc.client.dumps((key,), "far")
                request = f"POST /RPC2 HTTP/1.0\r\ntraceparent: {here()['traceparent']}\r\nContent-Type: text/xml\r\n"
                send(server.server_address[1], f"{request}Content-Length: {len(body)}\r\n\r\n{body}".encode())


@boundary("http.server handler starts a thread")
def thread(b: Program) -> None:
    class Handler(handler_of(b)):
        def do_GET(self):
            worker = threading.Thread(target=b.far, args=(self.path[1:],))
            worker.start()
            worker.join()
            answer(self)

    with serving(Handler) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("http.server, a body that is written bit by bit in HTTP/1.1 chunks")
def chunks(b: Program) -> None:
    class Handler(handler_of(b)):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _ in range(2):
                b.far(self.path[1:])
                self.wfile.write(b"1\r\nx\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    with serving(Handler) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("http.server.SimpleHTTPRequestHandler, subclassed")
def simple(b: Program) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            b.far(path[1:])
            return __file__

    with serving(Handler) as port:
        for key in "ab":
            with b.near(key):
                assert ask(port, f"/{key}", here()).status == 200


@boundary("http.server that hands its requests to a pool of its own")
def own_pool(b: Program) -> None:
    pool = ThreadPoolExecutor(2)

    class Server(http.server.HTTPServer):
        def process_request(self, request, client_address):
            pool.submit(self.work, request, client_address)

        def work(self, request, client_address):
            b.clean("a worker before the request")
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    with pool, serving(handler_of(b), Server) as port:
        for key in "ab":
            with b.near(key):
                ask(port, f"/{key}", here())


@boundary("xmlrpc multicall and an instance's methods")
def xmlrpc_instance(b: Program) -> None:
    class Service:
        def far(self, key):
            b.far(key)
            return True

    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False)
    server.register_instance(Service())
    server.register_multicall_functions()
    with server, in_thread(server.serve_forever, server.shutdown):
        for key in "ab":
            with b.near(key), xmlrpc.client.ServerProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
                calls = xmlrpc.client.MultiCall(proxy)
                calls.far(key)
                calls.far(key)
                assert list(calls()) == [True, True]
