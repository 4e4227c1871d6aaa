"""Entry: headers, as older services, strangers and proxies send them; through WSGI and ASGI servers.

Contrib is switched on with OpenTelemetry's default propagators, as a program has it that does not know who calls.
"""

import asyncio
import http.client
import json
import os
import urllib.request

import aiohttp
import httpx
import requests
import urllib3
from opentelemetry import context as otel_context
from opentelemetry import trace

from tests.boundaries import Program, boundary
from tests.calls.running import SPAN_ID, asgi, ask, here, send, wsgi

CONTRIB = [
    "opentelemetry.instrumentation.flask:FlaskInstrumentor",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",
    "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "opentelemetry.instrumentation.aiohttp_client:AioHttpClientInstrumentor",
    "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
    "opentelemetry.instrumentation.urllib:URLLibInstrumentor",
]

REQUEST_ID = "6f5902ac-237e-4f0e-8a1c-2f1d6c0b9d3e"


def services(b: Program):
    """The same service four times over; each takes the key from the path."""
    import fastapi
    import flask
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    by_flask, by_fastapi = flask.Flask(__name__), fastapi.FastAPI()

    @by_flask.get("/<key>")
    def show(key):
        b.far(key)
        return "done"

    @by_fastapi.get("/{key}")
    async def show_too(key: str):
        b.far(key)
        return "done"

    async def show_plainly(request):
        b.far(request.path_params["key"])
        return PlainTextResponse("done")

    services = [(wsgi, by_flask), (asgi, by_fastapi)]
    if "contrib" not in os.environ["BOUNDARY_MODE"]:
        services.append((asgi, Starlette(routes=[Route("/{key}", show_plainly)])))
    return services


def each(b: Program, headers, near=None):
    """One request to each service, with headers made of the ids of the span `near`."""
    for number, (serve, app) in enumerate(services(b)):
        with serve(app) as port:
            key = "abcd"[number]
            with (near or b.near)(key) as span:
                ids = span.get_span_context()
                sent = headers(f"{ids.trace_id:032x}", f"{ids.span_id:016x}")
                assert ask(port, f"/{key}", sent).status == 200


@boundary("headers: W3C traceparent")
def w3c(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"traceparent": f"00-{trace_id}-{span_id}-01"})


@boundary("headers: W3C traceparent, upper-case name")
def w3c_upper(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"TRACEPARENT": f"00-{trace_id}-{span_id}-01"})


@boundary("headers: future version 01 with extra fields")
def w3c_future(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"traceparent": f"01-{trace_id}-{span_id}-01-what-comes"})


@boundary("headers: oversized tracestate (600 chars): trace must survive")
def w3c_tracestate(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "traceparent": f"00-{trace_id}-{span_id}-01",
            "tracestate": ",".join(f"v{n}={'x' * 20}" for n in range(26)),
        },
    )


@boundary("headers: oversized baggage (60 kB)")
def w3c_baggage(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "traceparent": f"00-{trace_id}-{span_id}-01",
            "baggage": ",".join(f"k{n}={'v' * 50}" for n in range(1000)),
        },
    )


@boundary("headers: B3 multi from a legacy service, default propagators")
def b3_multi(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"X-B3-TraceId": trace_id, "X-B3-SpanId": span_id, "X-B3-Sampled": "1"})


@boundary("headers: B3 multi without X-B3-Sampled (deferred)")
def b3_deferred(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"x-b3-traceid": trace_id, "x-b3-spanid": span_id})


@boundary("headers: B3 single from a legacy service, default propagators")
def b3_single(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"b3": f"{trace_id}-{span_id}-1"})


@boundary("headers: Jaeger uber-trace-id, default propagators")
def jaeger(b: Program) -> None:
    each(b, lambda trace_id, span_id: {"uber-trace-id": f"{trace_id}:{span_id}:0:1"})


@boundary("headers: AWS X-Amzn-Trace-Id")
def xray(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "X-Amzn-Trace-Id": f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={span_id};Sampled=1"
        },
    )


@boundary("headers: Datadog x-datadog-trace-id, 128 bits")
def datadog(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "x-datadog-trace-id": str(int(trace_id[16:], 16)),
            "x-datadog-parent-id": str(int(span_id, 16)),
            "x-datadog-sampling-priority": "1",
            "x-datadog-tags": f"_dd.p.tid={trace_id[:16]}",
        },
    )


@boundary("headers: W3C and B3 disagree: W3C wins")
def disagreeing(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "traceparent": f"00-{trace_id}-{span_id}-01",
            "x-b3-traceid": "1" * 32,
            "x-b3-spanid": "2" * 16,
        },
    )


def in_short_trace(b: Program, headers):
    """As `each`, from a trace that an older service has begun, whose ids have 64 bits."""
    remote = trace.SpanContext(0x4BF92F3577B34DA6, 0xF067AA0BA902B7, True, trace.TraceFlags(1))
    token = otel_context.attach(trace.set_span_in_context(trace.NonRecordingSpan(remote)))
    each(b, lambda trace_id, span_id: headers(trace_id[16:], span_id), lambda key: b.span(f"near{key}"))
    otel_context.detach(token)


@boundary("headers: B3 multi, 64-bit trace id, upper-case names")
def b3_multi_short(b: Program) -> None:
    in_short_trace(
        b, lambda trace_id, span_id: {"X-B3-TRACEID": trace_id, "X-B3-SPANID": span_id, "X-B3-SAMPLED": "true"}
    )


@boundary("headers: B3 single, 64-bit trace id, with a parent, white space around it")
def b3_single_short(b: Program) -> None:
    in_short_trace(b, lambda trace_id, span_id: {"B3": f"  {trace_id}-{span_id}-d-{SPAN_ID}  "})


@boundary("headers: an invalid B3 single header beside a valid B3 multi")
def b3_fallback(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "b3": f"{trace_id}-{span_id}-x",
            "x-b3-traceid": trace_id,
            "x-b3-spanid": span_id,
            "x-b3-flags": "1",
        },
    )


@boundary("headers: B3 single and B3 multi disagree: single wins")
def b3_disagreeing(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "x-b3-traceid": "1" * 32,
            "x-b3-spanid": "2" * 16,
            "x-b3-sampled": "0",
            "b3": f"{trace_id}-{span_id}-1",
        },
    )


@boundary("headers: an invalid traceparent beside a valid B3")
def w3c_fallback(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "traceparent": f"00-{trace_id}-{span_id}-01-more",
            "tracestate": "v=1",
            "b3": f"{trace_id}-{span_id}-1",
        },
    )


@boundary("headers: a traceparent with unknown flags, white space around it, a broken tracestate and baggage")
def w3c_unusual(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "TraceParent": f"\t 00-{trace_id}-{span_id}-ff \t",
            "tracestate": "NO=1,\xff=\x7f,=,,;",
            "baggage": "\xff, =, a=%zz, k=v;p=;, ok=1",
        },
    )


@boundary("headers: Jaeger uber-trace-id, percent-coded, 64 bits without padding")
def jaeger_short(b: Program) -> None:
    in_short_trace(b, lambda trace_id, span_id: {"Uber-Trace-Id": f"{trace_id}%3A{span_id.lstrip('0')}%3A0%3A3"})


@boundary("headers: AWS X-Amzn-Trace-Id as a load balancer writes it: other fields, other order, spaces")
def xray_balanced(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "x-amzn-trace-id": f"Self=1-67891234-12456789abcdef012345678a; Sampled=1; Parent={span_id}; "
            f"Root=1-{trace_id[:8]}-{trace_id[8:]}; Lineage=a87bd80c:1|68fd508a:5|c512fbe3:2"
        },
    )


@boundary("headers: Datadog, 64 bits, without a decision")
def datadog_short(b: Program) -> None:
    in_short_trace(
        b,
        lambda trace_id, span_id: {
            "X-Datadog-Trace-Id": str(int(trace_id, 16)),
            "X-Datadog-Parent-Id": str(int(span_id, 16)),
            "X-Datadog-Origin": "rum",
        },
    )


@boundary("headers: OpenTracing's ot-tracer-*")
def ottrace(b: Program) -> None:
    in_short_trace(
        b,
        lambda trace_id, span_id: {
            "ot-tracer-traceid": trace_id,
            "ot-tracer-spanid": span_id,
            "ot-tracer-sampled": "true",
        },
    )


@boundary("headers: every format at once, all but one of them broken")
def one_of_all(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {
            "traceparent": "00-1-1-01",
            "b3": "1-1-1",
            "X-B3-TraceId": "zz",
            "uber-trace-id": ":::",
            "X-Amzn-Trace-Id": f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={span_id};Sampled=1",
            "x-datadog-trace-id": "-1",
            "ot-tracer-traceid": "g",
        },
    )


@boundary("headers: tracestate and baggage in several lines, on to the next service in one")
def lines_joined(b: Program) -> None:
    import flask

    seen = []

    def downstream(environ, start_response):
        seen.append((environ.get("HTTP_TRACESTATE"), environ.get("HTTP_BAGGAGE")))
        start_response("200 OK", [])
        b.far("a")
        return [b"done"]

    app = flask.Flask(__name__)

    @app.get("/a")
    def through():
        urllib.request.urlopen(f"http://127.0.0.1:{flask.current_app.back}/").read()
        return "done"

    with wsgi(downstream) as app.back, wsgi(app) as port, b.near("a"):
        lines = ["GET /a HTTP/1.1", "Host: h", "Connection: close", f"traceparent: {here()['traceparent']}"]
        lines += ["tracestate: a=1", "TraceState:  b=2 , c=3", "baggage: k=a%20b;p=1", "Baggage: m=1+1", "", ""]
        assert send(port, "\r\n".join(lines).encode()).status == 200
    if os.environ["BOUNDARY_MODE"] == "tracefill":
        state, members = seen[0]
        assert state == "a=1,b=2,c=3"
        assert sorted(members.split(",")) == ["k=a%20b;p=1", "m=1%2B1"]


@boundary("headers: who says no is believed, by every format", expect="own root")
def denied(b: Program) -> None:
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", SPAN_ID
    said = (
        {"traceparent": f"00-{trace_id}-{span_id}-00"},
        {"b3": "0"},
        {"b3": f"{trace_id}-{span_id}-0"},
        {"x-b3-sampled": "0"},
        {"x-b3-traceid": trace_id, "x-b3-spanid": span_id, "x-b3-sampled": "False"},
        {"uber-trace-id": f"{trace_id}:{span_id}:0:0"},
        {"x-amzn-trace-id": f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={span_id};Sampled=0"},
        {"x-datadog-trace-id": "7", "x-datadog-parent-id": "7", "x-datadog-sampling-priority": "-1"},
        {"ot-tracer-traceid": trace_id[16:], "ot-tracer-spanid": span_id, "ot-tracer-sampled": "false"},
    )
    for serve, app in services(b):
        with serve(app) as port:
            for headers in said:
                assert ask(port, "/a", headers).status == 200
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert recorded() == []
    b.far("a")  # something to judge


@boundary("headers: requests side by side keep their own")
def side_by_side(b: Program) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for serve, app in services(b)[1:2]:
        with serve(app) as port:

            def one(key):
                with b.near(key):
                    for _ in range(5):
                        assert ask(port, f"/{key}", here()).status == 200

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(one, "abcdefgh"))


@boundary("headers: malformed and oversized traceparents", expect="own root")
def malformed(b: Program) -> None:
    for key, value in (
        ("short", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"),
        ("version", f"ff-4bf92f3577b34da6a3ce929d0e0e4736-{SPAN_ID}-01"),
        ("zero", f"00-{'0' * 32}-{SPAN_ID}-01"),
        ("upper", f"00-4BF92F3577B34DA6A3CE929D0E0E4736-{SPAN_ID}-01"),
        ("long", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" + "-x" * 2000),
    ):
        for serve, app in services(b):
            with b.near(key), serve(app) as port:
                assert ask(port, f"/{key}", {"traceparent": value}).status == 200


@boundary("headers: duplicate traceparent headers (two different values)", expect="own root")
def duplicated(b: Program) -> None:
    for number, (serve, app) in enumerate(services(b)):
        key = "abcd"[number]
        with serve(app) as port, b.near(key):
            lines = [f"GET /{key} HTTP/1.1", "Host: h", "Connection: close", f"traceparent: {here()['traceparent']}"]
            lines += [f"traceparent: 00-{'1' * 32}-{SPAN_ID}-01", "", ""]
            assert send(port, "\r\n".join(lines).encode()).status == 200


def recorded():
    """The spans that were exported so far."""
    with open(os.environ["BOUNDARY_OUT"]) as lines:
        return [record for record in map(json.loads, lines) if "kind" in record]


def attributes_of(kind):
    return [json.dumps(span["attributes"]) for span in recorded() if span["kind"] == kind]


@boundary("headers: X-Request-ID only (legacy gateway), two services")
def two_services(b: Program) -> None:
    (_, front), (_, back) = services(b)[:2]
    import flask

    @front.get("/front/<key>")
    def through(key):
        with b.span(f"near{key}"):
            urllib.request.urlopen(f"http://127.0.0.1:{flask.current_app.back}/{key}").read()
        return "done"

    with wsgi(front) as port, asgi(back) as front.back:
        assert ask(port, "/front/a", {"X-Request-ID": REQUEST_ID}).status == 200
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert {span["trace"] for span in recorded()} == {REQUEST_ID.replace("-", "")}
        assert all(REQUEST_ID in attributes for attributes in attributes_of("SERVER")), recorded()
        assert not any(span["parent"] and span["kind"] == "SERVER" and not span["remote"] for span in recorded())


@boundary("headers: X-Request-ID with traceparent: id recorded on the server span")
def on_record(b: Program) -> None:
    each(
        b,
        lambda trace_id, span_id: {"traceparent": f"00-{trace_id}-{span_id}-01", "X-Request-ID": "order-4711"},
    )
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert len(attributes_of("SERVER")) >= 2
        assert all("order-4711" in attributes for attributes in attributes_of("SERVER")), attributes_of("SERVER")


@boundary("headers: trace id / request id returned in the response")
def returned(b: Program) -> None:
    for number, (serve, app) in enumerate(services(b)):
        key = "abcd"[number]
        with serve(app) as port, b.near(key):
            trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
            by_trace = ask(port, f"/{key}", here()).headers
            by_both = ask(port, f"/{key}", here() | {"X-Request-ID": REQUEST_ID}).headers
            if "tracefill" in os.environ["BOUNDARY_MODE"]:
                assert by_trace["x-request-id"] == trace_id
                assert by_both["x-request-id"] == REQUEST_ID
                assert trace_id in by_both["traceresponse"]


@boundary("headers: X-Request-ID forwarded to the downstream HTTP call, by each client")
def forwarded(b: Program) -> None:
    import flask

    seen = {}

    def downstream(environ, start_response):
        seen[environ["PATH_INFO"]] = environ.get("HTTP_X_REQUEST_ID")
        start_response("200 OK", [])
        b.far("a")
        return [b"done"]

    async def by_httpx(url):
        async with httpx.AsyncClient() as client:
            await client.get(url)

    async def by_aiohttp(url):
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await response.read()

    app = flask.Flask(__name__)

    @app.get("/a")
    def through():
        back = f"http://127.0.0.1:{flask.current_app.back}"
        with b.span("neara"):
            urllib.request.urlopen(f"{back}/urllib").read()
            requests.get(f"{back}/requests", timeout=30)
            httpx.get(f"{back}/httpx")
            urllib3.request("GET", f"{back}/urllib3")
            asyncio.run(by_httpx(f"{back}/httpx_async"))
            connection = http.client.HTTPConnection("127.0.0.1", flask.current_app.back)
            connection.request("GET", "/http_client")
            connection.getresponse().read()
            connection.close()
            requests.get(f"{back}/own", headers={"x-request-id": "own"}, timeout=30)
            asyncio.run(by_aiohttp(f"{back}/aiohttp"))
        return "done"

    with wsgi(app) as port, wsgi(downstream) as app.back:
        assert ask(port, "/a", {"X-Request-ID": "order-4711"}).status == 200
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert seen.pop("/own") == "own"
        assert len(seen) == 7
        assert set(seen.values()) == {"order-4711"}, seen


@boundary("headers: log records in the handler carry the trace id (stdlib logging)")
def logged(b: Program) -> None:
    import logging

    import flask

    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(vars(record))

    logger = logging.getLogger("shop")
    logger.addHandler(Keep())
    app = flask.Flask(__name__)

    @app.get("/<key>")
    def show(key):
        logger.warning("paid", extra={"key": key})
        b.far(key)
        return "done"

    with wsgi(app) as port:
        for key in "ab":
            with b.near(key) as near:
                ask(port, f"/{key}", here() | {"X-Request-ID": "order-4711"})
                if "tracefill" in os.environ["BOUNDARY_MODE"]:
                    assert records[-1]["otelTraceID"] == f"{near.get_span_context().trace_id:032x}"
                    assert records[-1]["otelTraceSampled"] is True
                    assert records[-1]["request_id"] == "order-4711"
