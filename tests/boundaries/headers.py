"""Entry: headers, as older services, strangers and proxies send them; through WSGI and ASGI servers.

Contrib is switched on with OpenTelemetry's default propagators, as a program has it that does not know who calls.
"""

import json
import os
import urllib.request

from opentelemetry import trace

from tests.boundaries import Program, boundary
from tests.calls.running import SPAN_ID, asgi, ask, here, send, wsgi

CONTRIB = [
    "opentelemetry.instrumentation.flask:FlaskInstrumentor",
    "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",
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


def each(b: Program, headers):
    """One request to each service, with headers made of the ids of the span `near`."""
    for number, (serve, app) in enumerate(services(b)):
        with serve(app) as port:
            key = "abcd"[number]
            with b.near(key) as near:
                ids = near.get_span_context()
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


@boundary("headers: X-Request-ID forwarded to the downstream HTTP call")
def forwarded(b: Program) -> None:
    import flask

    seen = []

    def downstream(environ, start_response):
        seen.append(environ.get("HTTP_X_REQUEST_ID"))
        start_response("200 OK", [])
        b.far("a")
        return [b"done"]

    app = flask.Flask(__name__)

    @app.get("/a")
    def through():
        with b.span("neara"):
            urllib.request.urlopen(f"http://127.0.0.1:{flask.current_app.back}/").read()
        return "done"

    with wsgi(app) as port, wsgi(downstream) as app.back:
        assert ask(port, "/a", {"X-Request-ID": "order-4711"}).status == 200
    if "tracefill" in os.environ["BOUNDARY_MODE"]:
        assert seen == ["order-4711"]


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
