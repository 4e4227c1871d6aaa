"""Business tags: found in requests, on spans and log lines, and sent on to those who may have them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.trace import SpanKind

import tracefill
from tests.calls.running import SAMPLED, UNSAMPLED, asgi, ask, in_thread, send, wait_for, wsgi
from tests.contracts import finished, tracer
from tracefill import tags
from tracefill.calls import asgi as calls_asgi
from tracefill.calls import wsgi as calls_wsgi
from tracefill.gateway import asgi as gateway_asgi
from tracefill.gateway import wsgi as gateway_wsgi
from tracefill.gateway.logs import ContextFilter
from tracefill.tags import Tag, TagError

needs_toml = pytest.mark.skipif(
    find_spec("tomllib") is None and find_spec("tomli") is None, reason="this Python reads no TOML"
)
customer: ContextVar[str | None] = ContextVar("customer", default=None)


@pytest.fixture(autouse=True)
def _nothing_declared() -> Iterator[None]:
    yield
    tags.forget()
    tags._counts.clear()
    tags._complained.clear()


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    """The fields of what the logger `shop` says, with `tracefill.install(only=["logs"])`."""
    records: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(vars(record))

    logger, handler = logging.getLogger("shop"), Keep()
    logger.addHandler(handler)
    tracefill.install(only=["logs"])
    yield records
    tracefill.uninstall()
    logger.removeHandler(handler)


class Service:
    """A WSGI service: it works, logs, and does what else it is given."""

    def __init__(self, work: Any = lambda: None) -> None:
        self.work = work
        self.seen: dict[str, str] = {}
        self.environ: dict[str, Any] = {}

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.environ = environ
        self.work()
        with tracer.start_as_current_span("work"):
            logging.getLogger("shop").warning("paid")
            self.seen = tags.current()
        start_response("200 OK", [])
        return [json.dumps(self.seen).encode()]


def served(app: Any, path: str = "/", headers: dict[str, str] | None = None) -> None:
    with wsgi(gateway_wsgi.Gateway(calls_wsgi.Middleware(app))) as port:
        assert ask(port, path, headers).status == 200


def server_span(spans: Any) -> Any:
    found = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert len(found) == 1
    return found[0]


class TestSources:
    """header > path > context > baggage > environment > default."""

    @pytest.fixture
    def _declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHOP_CUSTOMER", "by-environment")
        tags.declare(
            Tag(
                "customer",
                header="x-customer",
                path="/customers/{customer}",
                context=customer,
                baggage=True,
                environment="SHOP_CUSTOMER",
                default="by-default",
            )
        )

    @pytest.mark.usefixtures("_declared")
    @pytest.mark.parametrize("left_out", range(4))
    def test_the_first_that_has_one_is_taken(self, left_out: int, spans: Any) -> None:
        expected = ("by-header", "by-path", "by-context", "by-baggage", "by-environment")
        headers = {"X-Customer": "by-header", "baggage": "customer=by-baggage"}
        if left_out > 0:
            del headers["X-Customer"]
        path = "/customers/by-path/orders" if left_out < 2 else "/orders"
        service = Service(lambda: customer.set("by-context" if left_out < 3 else None))
        for wanted, sent in ((expected[left_out], headers), (None, {})):
            spans.clear()
            if wanted is None:
                wanted, path, service.work = "by-environment", "/", lambda: customer.set(None)
            served(service, path, sent)
            assert service.seen == {"customer": wanted}
            assert finished(spans, "work").attributes["customer"] == wanted

    def test_the_default_is_the_last(self) -> None:
        tags.declare(Tag("env", environment="SHOP_NO_SUCH_VARIABLE", default="dev"), Tag("unset"))
        assert tags.current() == {"env": "dev"}

    def test_structlogs_context_is_one(self) -> None:
        structlog = pytest.importorskip("structlog")
        tags.declare(Tag("order_no"))
        with structlog.contextvars.bound_contextvars(order_no="4711"):
            assert tags.current() == {"order_no": "4711"}
        assert tags.current() == {}

    def test_what_a_log_line_says_counts_for_its_span_and_its_request(self, spans: Any, logged: Any) -> None:
        tags.declare(Tag("order_no", required=True))
        work = lambda: logging.getLogger("shop").warning("new", extra={"order_no": "4711"})  # noqa: E731
        served(Service(work))
        assert server_span(spans).attributes["order_no"] == "4711"
        assert [line["order_no"] for line in logged] == ["4711", ""]
        assert tags.counts() == {}

    def test_a_line_that_was_given_its_fields_already_says_nothing_of_its_own(self, logged: Any) -> None:
        tags.declare(Tag("order_no"))
        logging.getLogger("shop").warning("new")
        (record,) = logged
        ContextFilter().filter(logging.makeLogRecord(record))
        assert record["order_no"] == ""
        assert tags.counts() == {}

    @pytest.mark.parametrize(
        ("path", "found"),
        [
            ("/tenants/a1", {"tenant_id": "a1"}),
            ("/tenants/a1/orders/7", {"tenant_id": "a1"}),
            ("/tenants/a%2D1", {"tenant_id": "a-1"}),
            ("/v2/eu/tenants/b2/", {"tenant_id": "b2"}),
            ("/tenants/", {}),
            ("/tenants", {}),
            ("/shop/tenants/a1", {}),
            ("/tenants/%0d%0aX: 1", {}),
        ],
    )
    def test_templates_match_the_beginning_of_a_path(self, path: str, found: dict[str, str]) -> None:
        tags.declare(Tag("tenant_id", path=["/tenants/{tenant_id}", "/v2/{region}/tenants/{tenant_id}"]))
        service = Service()
        served(service, path.replace(" ", "%20"))
        assert service.seen == found

    def test_strangers_bring_nothing_but_a_path(self) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id", baggage=True), Tag("order_no", path="/orders/{order_no}"))
        service = Service()
        with wsgi(gateway_wsgi.Gateway(calls_wsgi.Middleware(service), trusted=False)) as port:
            ask(port, "/orders/7", {"X-Tenant-Id": "a", "baggage": "tenant_id=a"})
        assert service.seen == {"order_no": "7"}

    def test_an_own_scope(self, spans: Any) -> None:
        tags.declare(Tag("tenant_id"), Tag("env", default="dev"))
        with tags.scope(tenant_id="a") as now:
            assert now == tags.current() == {"tenant_id": "a", "env": "dev"}
            with tags.scope(env="test"), tracer.start_as_current_span("job"):
                pass
        assert tags.current() == {"env": "dev"}
        assert dict(finished(spans, "job").attributes) == {"tenant_id": "a", "env": "test"}

    def test_snapshots_carry_them(self) -> None:
        tags.declare(Tag("tenant_id"), Tag("order_no"))
        with tracer.start_as_current_span("request"), tags.scope(tenant_id="a"), tracefill.snapshot() as here:
            text = here.to_json()
        restored = tracefill.Snapshot.from_json(text)
        assert restored is not None
        assert restored.run(tags.current) == {"tenant_id": "a"}


class TestValues:
    @pytest.mark.parametrize(
        "value", ["", "x" * 129, "a b", "a,b", "<script>", 'a"b', "caf\u00e9", "a\tb", "\x01", "a;b=c", "a\\b"]
    )
    def test_what_is_not_valid_is_not_taken(self, value: str, spans: Any, logged: Any) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id", default="none"))
        service = Service()
        served(service, headers={"X-Tenant-Id": value})
        assert service.seen == {"tenant_id": "none"}
        assert tags.counts() == {("tenant_id", "bad"): 1}
        assert logged[0]["tenant_id"] == "none"

    def test_two_lines_are_not_one_value(self) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id"))
        for gateway, middleware, serve in (
            (gateway_wsgi.Gateway, calls_wsgi.Middleware, wsgi),
            (gateway_asgi.Gateway, calls_asgi.Middleware, asgi),
        ):
            app = Service() if serve is wsgi else Answering()
            with serve(gateway(middleware(app))) as port:
                line = b"X-Tenant-Id: a\r\n"
                send(port, b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + line + line + b"\r\n")
            assert app.seen == {}

    def test_other_characters_and_lengths_are_a_matter_of_the_declaration(self) -> None:
        tag = Tag("customer", characters="a-z ", max_length=5)
        assert tag.take(" ab c ") == "ab c"
        assert tag.take("abcdef") is None
        assert tag.take("A") is None
        assert Tag("customer", characters=r"\s\w").take("a\r\nX-Evil: 1") is None

    def test_numbers_and_uuids_are_values_and_objects_are_not(self) -> None:
        order = uuid.UUID(int=5)
        assert [Tag("order_no").take(value) for value in (7, order, object(), [1])] == ["7", str(order), None, None]

    def test_hashed_values_are_never_seen(self, spans: Any, logged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRACEFILL_TAGS_KEY", "a secret")
        tags.declare(Tag("email", header="x-email", baggage=True, hashed=True))
        service = Service()
        served(service, headers={"X-Email": "me@shop.example"})
        hashed = service.seen["email"]
        assert re.fullmatch("hmac-[0-9a-f]{32}", hashed)
        assert server_span(spans).attributes["email"] == logged[0]["email"] == hashed
        served(service, headers={"X-Email": hashed})
        assert service.seen["email"] == hashed
        monkeypatch.setenv("TRACEFILL_TAGS_KEY", "another")
        assert Tag("email", hashed=True).take("me@shop.example") != hashed


class Answering:
    """An ASGI application that tells which tags it sees."""

    seen: dict[str, str]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen = tags.current()
        body = json.dumps(self.seen).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class TestWhereTheyLand:
    def test_the_declaration_says_where(self, spans: Any, logged: Any) -> None:
        tags.declare(
            Tag("both", default="1"), Tag("spans", default="2", log=False), Tag("logs", default="3", span=False)
        )
        served(Service())
        for span in (server_span(spans), finished(spans, "work")):
            assert {name: span.attributes.get(name) for name in ("both", "spans", "logs")} == {
                "both": "1",
                "spans": "2",
                "logs": None,
            }
        assert [(line["both"], line["logs"], "spans" in line) for line in logged] == [("1", "3", False)]

    def test_what_is_found_on_the_way_is_on_the_server_span_too(self, spans: Any) -> None:
        tags.declare(Tag("customer", context=customer))
        served(Service(lambda: customer.set("late")))
        customer.set(None)
        assert server_span(spans).attributes["customer"] == "late"

    def test_unsampled_requests_have_them_in_the_log(self, spans: Any, logged: Any) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id"))
        served(Service(), headers={"traceparent": UNSAMPLED, "X-Tenant-Id": "a"})
        assert spans.get_finished_spans() == ()
        assert logged[0]["tenant_id"] == "a"

    def test_spans_that_contrib_makes_have_them(self, spans: Any) -> None:
        flask = pytest.importorskip("flask")
        contrib = pytest.importorskip("opentelemetry.instrumentation.flask")
        tags.declare(Tag("tenant_id", header="x-tenant-id"), Tag("order_no", baggage=True))
        app = flask.Flask("shop")
        contrib.FlaskInstrumentor.instrument_app(app)
        members = []

        @app.get("/")
        def show() -> str:
            members.append(dict(baggage.get_all()))
            with tracer.start_as_current_span("work"):
                return str(tags.current())

        with wsgi(gateway_wsgi.Gateway(app)) as port:
            ask(port, "/", {"X-Tenant-Id": "a", "baggage": "order_no=7,theirs=1", "traceparent": SAMPLED})
        assert server_span(spans).instrumentation_scope.name == "opentelemetry.instrumentation.flask"
        for span in (server_span(spans), finished(spans, "work")):
            assert (span.attributes["tenant_id"], span.attributes["order_no"]) == ("a", "7")
        assert members == [{"theirs": "1"}]  # so that no client of contrib's sends a tag to anybody

    def test_they_are_no_plain_baggage_that_anybody_would_send_on(self) -> None:
        tags.declare(Tag("order_no", baggage=True))
        members = []
        served(Service(lambda: members.append(dict(baggage.get_all()))), headers={"baggage": "order_no=7,theirs=1"})
        assert members == [{"theirs": "1"}]

    def test_baggage_that_came_by_another_way_is_read_too(self, spans: Any) -> None:
        tags.declare(Tag("order_no", baggage=True), Tag("kept"))
        with tracefill.context.scope(tracefill.extract({"baggage": "order_no=7;prop,kept=1", "traceparent": SAMPLED})):
            with tracer.start_as_current_span("process"):
                sent: dict[str, str] = {}
                tags.inject(sent, tracefill.context.current(), None)
        assert dict(finished(spans, "process").attributes) == {"order_no": "7"}
        assert sent["baggage"] == "kept=1"

    def test_brokers_are_inside(self) -> None:
        tags.declare(Tag("order_no", baggage=True), Tag("tenant_id", baggage=True, hosts="*.shop.example"))
        sent: dict[str, str] = {}
        with tags.scope(order_no="7", tenant_id="a"):
            tags.inject(sent, tracefill.context.current(), tags.BROKER)
        assert sent == {"baggage": "order_no=7"}

    def test_a_request_leaves_nothing_to_the_next(self) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id"))
        service = Service()
        with wsgi(gateway_wsgi.Gateway(calls_wsgi.Middleware(service))) as port:
            ask(port, "/", {"X-Tenant-Id": "a"})
            ask(port, "/")
        assert service.seen == {}


def by_http_server() -> Any:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen = json.dumps(tags.current()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(seen)))
            self.end_headers()
            self.wfile.write(seen)

        def log_message(self, *_: Any) -> None:
            pass

    @contextlib.contextmanager
    def serve() -> Iterator[int]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, in_thread(server.serve_forever, server.shutdown):
            yield server.server_port

    return serve()


def by_wsgiref() -> Any:
    return wsgi(Service())


def by_flask() -> Any:
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")
    app.add_url_rule("/tenants/<name>", view_func=lambda name: tags.current())
    return wsgi(app)


def by_uvicorn() -> Any:
    return asgi(Answering())


def by_fastapi() -> Any:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    app.get("/tenants/{name}")(lambda name: tags.current())
    return asgi(app)


def by_aiohttp_web() -> Any:
    web = pytest.importorskip("aiohttp.web")

    @contextlib.contextmanager
    def serve() -> Iterator[int]:
        loop = asyncio.new_event_loop()

        async def answer(_: Any) -> Any:
            return web.json_response(tags.current())

        async def start() -> Any:
            app = web.Application()
            app.router.add_get("/tenants/{name}", answer)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner

        runner = loop.run_until_complete(start())
        with in_thread(loop.run_forever, lambda: loop.call_soon_threadsafe(loop.stop)):
            yield runner.addresses[0][1]
        loop.run_until_complete(runner.cleanup())
        loop.close()

    return serve()


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("serve", [by_http_server, by_wsgiref, by_flask, by_uvicorn, by_fastapi, by_aiohttp_web])
def test_every_server_that_install_traces_finds_them(serve: Any, sampled: bool, spans: Any) -> None:
    tags.declare(
        Tag("tenant_id", path="/tenants/{tenant_id}"),
        Tag("biz_id", header="x-biz-id"),
        Tag("order_no", baggage=True),
        Tag("customer", required=True),
    )
    tracefill.install()
    try:
        with serve() as port:
            headers = {"X-Biz-Id": "7", "baggage": "order_no=8", "traceparent": SAMPLED if sampled else UNSAMPLED}
            response = ask(port, "/tenants/a", headers)
    finally:
        tracefill.uninstall()
    expected = {"tenant_id": "a", "biz_id": "7", "order_no": "8"}
    if sampled:
        wait_for(lambda: spans.get_finished_spans())
        attributes = server_span(spans).attributes
        assert {name: attributes.get(name) for name in expected} == expected
    assert response.status == 200
    assert json.loads(response.body) == expected
    assert tags.counts() == {("customer", "missing"): 1}


class Other:
    """Somebody's server, that notes the headers it is sent; `/to/URL` redirects there."""

    def __init__(self) -> None:
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append({name.lower(): value for name, value in self.headers.items()})
                target = self.path.partition("/to/")[2]
                self.send_response(302 if target else 200)
                if target:
                    self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def other() -> Iterator[Other]:
    """127.0.0.1 is the allowed one, localhost the stranger: the same server, by two names."""
    other = Other()
    yield other
    other.stop()


def by_requests(url: str, headers: dict[str, str]) -> None:
    pytest.importorskip("requests").get(url, headers=headers)


def by_httpx(url: str, headers: dict[str, str]) -> None:
    pytest.importorskip("httpx").get(url, headers=headers, follow_redirects=True)


def by_urllib3(url: str, headers: dict[str, str]) -> None:
    with pytest.importorskip("urllib3").PoolManager() as pool:
        pool.request("GET", url, headers=headers)


def by_urllib(url: str, headers: dict[str, str]) -> None:
    from urllib.request import Request, urlopen

    urlopen(Request(url, headers=headers)).read()


def by_http_client(url: str, headers: dict[str, str]) -> None:
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port)
    connection.request("GET", parts.path or "/", headers=headers)
    location = connection.getresponse().getheader("Location")
    connection.close()
    if location:
        by_http_client(location, headers)


def by_aiohttp(url: str, headers: dict[str, str]) -> None:
    aiohttp = pytest.importorskip("aiohttp")

    async def get() -> None:
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
            await response.read()

    asyncio.run(get())


def by_pycurl(url: str, headers: dict[str, str]) -> None:
    pycurl = pytest.importorskip("pycurl")
    curl = pycurl.Curl()
    curl.setopt(curl.URL, url)
    curl.setopt(curl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
    curl.setopt(curl.WRITEFUNCTION, lambda _: None)
    if "/to/" in url:
        curl.setopt(curl.FOLLOWLOCATION, True)
    curl.perform()
    curl.close()


CLIENTS = [by_requests, by_httpx, by_urllib3, by_urllib, by_http_client, by_aiohttp, by_pycurl]


@pytest.mark.parametrize("get", CLIENTS)
class TestGoingOut:
    @pytest.fixture(autouse=True)
    def _installed(self) -> Iterator[None]:
        tags.declare(
            Tag("tenant_id", baggage=True, hosts="127.0.0.1"),
            Tag("biz_id", header="x-biz-id", hosts=["127.0.0.1"]),
            Tag("kept", default="here"),
        )
        tracefill.install(
            only=["requests", "httpx", "urllib3", "urllib", "http_client", "aiohttp_client", "pycurl"],
        )
        yield
        tracefill.uninstall()

    def get(self, get: Any, url: str, headers: dict[str, str] | None = None) -> None:
        members = tracefill.extract({"traceparent": SAMPLED, "baggage": "theirs=1"})
        with tracefill.context.scope(members), tags.scope(tenant_id="a", biz_id="7"):
            get(url, headers or {})

    def test_allowed_hosts_are_sent_them_once(self, get: Any, other: Other) -> None:
        self.get(get, f"http://127.0.0.1:{other.port}/")
        (received,) = other.received
        assert received["x-biz-id"] == "7"
        assert sorted(received["baggage"].split(",")) == ["tenant_id=a", "theirs=1"]

    def test_others_are_sent_the_trace_alone(self, get: Any, other: Other) -> None:
        self.get(get, f"http://localhost:{other.port}/")
        (received,) = other.received
        assert "traceparent" in received
        assert "x-biz-id" not in received
        assert received["baggage"] == "theirs=1"

    def test_a_redirect_to_another_host_takes_nothing_along(self, get: Any, other: Other) -> None:
        self.get(get, f"http://127.0.0.1:{other.port}/to/http://localhost:{other.port}/")
        first, second = other.received
        assert "traceparent" in second
        assert "x-biz-id" not in second
        assert "tenant_id" not in second.get("baggage", "")
        if get is not by_pycurl:  # it follows by itself, with all that it was given: so it is given no tag
            assert first["x-biz-id"] == "7"

    def test_what_the_caller_sets_himself_stays(self, get: Any, other: Other) -> None:
        self.get(get, f"http://127.0.0.1:{other.port}/", {"X-Biz-Id": "own"})
        assert other.received[0]["x-biz-id"] == "own"


def test_clients_that_contrib_traces_send_none(other: Other) -> None:
    contrib = pytest.importorskip("opentelemetry.instrumentation.requests").RequestsInstrumentor()
    tags.declare(Tag("tenant_id", header="x-tenant-id", baggage=True))
    tracefill.install(only=["requests"])
    contrib.instrument()
    try:
        came = tracefill.extract({"traceparent": SAMPLED, "baggage": "tenant_id=a,theirs=1"})
        with tracefill.context.scope(tags.received(came, {}, "/")):
            assert tags.current() == {"tenant_id": "a"}
            by_requests(f"http://127.0.0.1:{other.port}/", {})
    finally:
        contrib.uninstrument()
        tracefill.uninstall()
    assert other.received[0]["baggage"] == "theirs=1"
    assert "x-tenant-id" not in other.received[0]


class TestTwoServices:
    """A gateway on uvicorn, a service behind it on wsgiref, and a third party."""

    @pytest.mark.parametrize("sampled", [True, False])
    def test_a_tag_reaches_the_next_service_and_nobody_else(
        self, sampled: bool, spans: Any, logged: Any, other: Other
    ) -> None:
        requests = pytest.importorskip("requests")
        tags.declare(
            Tag("tenant_id", path="/tenants/{tenant_id}", baggage=True, required=True, hosts="127.0.0.1"),
            Tag("biz_id", header="x-biz-id", hosts="127.0.0.1"),
        )
        tracefill.install(only=["requests", "logs"])
        behind = Service()
        with wsgi(calls_wsgi.Middleware(behind)) as port:

            def calls() -> None:
                requests.get(f"http://127.0.0.1:{port}/orders")
                requests.get(f"http://localhost:{other.port}/")

            async def entry(scope: Any, receive: Any, send: Any) -> None:
                calls()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"done"})

            with asgi(gateway_asgi.Gateway(calls_asgi.Middleware(entry))) as edge:
                headers = {"X-Biz-Id": "7", "traceparent": SAMPLED if sampled else UNSAMPLED}
                assert ask(edge, "/tenants/a1/orders", headers).status == 200
        assert behind.environ["HTTP_BAGGAGE"] == "tenant_id=a1"
        assert behind.seen == {"tenant_id": "a1", "biz_id": "7"}
        (line,) = logged
        assert (line["tenant_id"], line["biz_id"]) == ("a1", "7")
        (third,) = other.received
        assert "baggage" not in third
        assert "x-biz-id" not in third
        finished_spans = spans.get_finished_spans()
        assert len(finished_spans) == (5 if sampled else 0)  # two server, two client, the service's own
        for span in finished_spans:
            assert (span.attributes["tenant_id"], span.attributes["biz_id"]) == ("a1", "7")
        assert tags.counts() == {}

    def test_by_grpc(self, spans: Any) -> None:
        grpc = pytest.importorskip("grpc")
        from tests.calls.grpc_service import served as grpc_served
        from tests.calls.grpc_service import stub

        tags.declare(Tag("tenant_id", baggage=True), Tag("biz_id", header="x-biz-id"))
        tracefill.install(only=["grpc"])
        try:
            seen: list[dict[str, str]] = []

            def handle(request: bytes, context: Any) -> bytes:
                seen.append(tags.current())
                return request

            with grpc_served({"UU": handle}) as target, grpc.insecure_channel(target) as channel:
                with tags.scope(tenant_id="a", biz_id="7"):
                    assert stub(channel, "UU")(b"x") == b"x"
        finally:
            tracefill.uninstall()
        assert seen == [{"tenant_id": "a", "biz_id": "7"}]
        wait_for(lambda: len(spans.get_finished_spans()) == 2)
        for span in spans.get_finished_spans():
            assert (span.attributes["tenant_id"], span.attributes["biz_id"]) == ("a", "7")


def called_without_gateway(kind: str, traceparent: str, work: Any = lambda: None) -> None:
    """One request to a bare Middleware; what the work has set is gone afterwards."""

    def wsgi_app(_: Any, start_response: Any) -> list[bytes]:
        work()
        return [b"done"]

    async def asgi_app(_: Any, receive: Any, send: Any) -> None:
        work()

    def call() -> None:
        if kind == "wsgi":
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_TRACEPARENT": traceparent}
            list(calls_wsgi.Middleware(wsgi_app)(environ, lambda *_: None))
        else:
            headers = [(b"traceparent", traceparent.encode())]
            scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
            asyncio.run(calls_asgi.Middleware(asgi_app)(scope, None, None))

    contextvars.copy_context().run(call)


class TestRequired:
    def test_a_missing_one_is_counted_and_complained_about_once_a_minute(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr(tags.time, "monotonic", lambda: now[0])
        tags.declare(Tag("tenant_id", header="x-tenant-id", required=True))
        app = gateway_wsgi.Gateway(calls_wsgi.Middleware(Service()))
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        for _ in range(3):
            list(app(dict(environ), lambda *_: None))
        list(app({**environ, "HTTP_X_TENANT_ID": "a"}, lambda *_: None))
        assert tags.counts() == {("tenant_id", "missing"): 3}
        complaints = [record.getMessage() for record in caplog.records if record.name == "tracefill"]
        assert complaints == ["the required tag 'tenant_id' is missing; 1 requests came without it so far"]
        now[0] += 61
        list(app(dict(environ), lambda *_: None))
        complaints = [record.getMessage() for record in caplog.records if record.name == "tracefill"]
        assert complaints[1:] == ["the required tag 'tenant_id' is missing; 4 requests came without it so far"]

    @pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED])
    @pytest.mark.parametrize("kind", ["wsgi", "asgi"])
    def test_a_missing_one_counts_without_a_gateway_and_without_a_span(self, kind: str, traceparent: str) -> None:
        tags.declare(Tag("customer", context=customer, required=True))
        called_without_gateway(kind, traceparent)
        assert tags.counts() == {("customer", "missing"): 1}
        called_without_gateway(kind, traceparent, lambda: customer.set("late"))
        assert tags.counts() == {("customer", "missing"): 1}

    def test_one_that_is_found_on_the_way_is_not_missing(self) -> None:
        tags.declare(Tag("customer", context=customer, required=True))
        served(Service(lambda: customer.set("late")))
        customer.set(None)
        assert tags.counts() == {}


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "inside"),
        [
            ("orders", True),
            ("localhost", True),
            ("127.0.0.1", True),
            ("10.0.0.7", True),
            ("::1", True),
            ("orders.prod.svc", True),
            ("orders.prod.svc.cluster.local", True),
            ("db.internal", True),
            ("LOCALHOST.", True),
            ("/run/shop.sock", True),
            ("api.partner.example", False),
            ("8.8.8.8", False),
            ("134744072", False),
            ("0x8080808", False),
            ("169.254.169.254", False),
            ("2606:4700::1", False),
            ("local.evil.example", False),
            ("evilinternal.example", False),
            ("", False),
        ],
    )
    def test_inside_is_what_no_stranger_can_own(self, host: str, inside: bool) -> None:
        assert Tag("tenant_id").goes_to(host) is inside

    def test_a_list_is_the_whole_list(self) -> None:
        tag = Tag("tenant_id", hosts=["inside", "*.Partner.example"])
        assert [tag.goes_to(host) for host in ("orders", "api.partner.example", "partner.example.evil", None)] == [
            True,
            True,
            False,
            False,
        ]
        assert not Tag("tenant_id", hosts=()).goes_to("localhost")


class TestDeclarations:
    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ({"name": "no spaces"}, "expected a name"),
            ({"name": "message"}, "every log record has a field of this name"),
            ({"header": "x tenant"}, "header: expected a name"),
            ({"path": "/tenants/{other}"}, "path: expected a template such as '/orders/{t}'"),
            ({"path": "tenants/{t}"}, "path: expected a template"),
            ({"path": 7}, "path: expected text"),
            ({"context": "no.such.module:variable"}, "'no.such.module:variable' is not found"),
            ({"context": "json:dumps"}, "expected a ContextVar"),
            ({"baggage": "yes"}, "baggage: expected True or False, got 'yes'"),
            ({"max_length": 0}, "max_length: expected 1 to 1024 characters, got 0"),
            ({"characters": "z-a"}, "characters: expected those of a character class"),
            ({"default": "a b"}, "default: 'a b' is not a value"),
            ({"hashed": True}, "TRACEFILL_TAGS_KEY"),
            ({"hosts": [1]}, "hosts: expected text"),
        ],
    )
    def test_a_wrong_one_says_so_at_once(
        self, words: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TRACEFILL_TAGS_KEY", raising=False)
        with pytest.raises(TagError) as raised:
            Tag(**{"name": "t", **words})
        assert complaint in str(raised.value)

    def test_names_and_headers_are_given_once(self) -> None:
        tags.declare(Tag("tenant_id", header="x-tenant-id"))
        with pytest.raises(TagError, match="declared already"):
            tags.declare(Tag("order_no"), Tag("tenant_id"))
        with pytest.raises(TagError, match="belongs to another"):
            tags.declare(Tag("other", header="X-Tenant-ID"))
        assert [tag.name for tag in tags.declared()] == ["tenant_id"]

    @needs_toml
    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "tags.toml"
        file.write_text(
            '[tenant_id]\nheader = "x-tenant-id"\npath = ["/tenants/{tenant_id}"]\nbaggage = true\nrequired = true\n'
            '[customer]\ncontext = "tests.test_tags:customer"\n[env]\ndefault = "dev"\n'
        )
        tags.load(file)
        assert [tag.name for tag in tags.declared()] == ["tenant_id", "customer", "env"]
        assert tags.declared()[0].required
        assert tags.current() == {"env": "dev"}

    @needs_toml
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ('[tenant_id]\nheaders = "x"', r"tags\.toml: \[tenant_id\]: 'headers' is no word of a tag; 'header' is"),
            ('tenant_id = "x"', r"tags\.toml: expected tables"),
            ("[tenant_id", r"tags\.toml: "),
            ('[tenant_id]\nheader = "x y"', r"tags\.toml: tag 'tenant_id': header: expected a name"),
        ],
    )
    def test_a_wrong_file_says_where(self, text: str, complaint: str, tmp_path: Path) -> None:
        file = tmp_path / "tags.toml"
        file.write_text(text)
        with pytest.raises(TagError, match=complaint):
            tags.load(file)
        assert tags.declared() == ()

    def test_scopes_know_their_names(self) -> None:
        with (
            pytest.raises(TagError, match="'tenant': is not declared"),
            tags.scope(tenant="a"),
        ):
            pass


def test_without_a_declaration_nothing_is_there(spans: Any, logged: Any) -> None:
    context = tracefill.extract({"traceparent": SAMPLED, "baggage": "tenant_id=a"})
    assert tags.received(context, {"x-tenant-id": "a"}, "/tenants/a") is context
    assert tags.taken_over(context, {}) is context
    assert tags.current(context) == tags.attributes(context) == tags.log_fields() == {}
    served(Service(), headers={"baggage": "tenant_id=a"})
    assert "tenant_id" not in server_span(spans).attributes
    assert "tenant_id" not in logged[0]
    assert trace.get_current_span() is trace.INVALID_SPAN
