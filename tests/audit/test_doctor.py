"""`tracefill doctor` in environments of its own: what loses the context in each is found, and nothing in a healthy one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 240
HEALTHY = {"OTEL_SERVICE_NAME": "orders"}

SDK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
"""
CONTRIB = """
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
FlaskInstrumentor().instrument()
RequestsInstrumentor().instrument()
"""
TRACEFILL = "import tracefill; tracefill.install()\n"
FLASK = "import flask, requests; app = flask.Flask('shop')\n"

Examine = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Runs the command with these variables, on the application of this source when there is one."""

    def examine(source: str = "", *arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
        if source:
            (tmp_path / "shop_app.py").write_text(source)
            arguments = ("--app", "shop_app:app", *arguments)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        done = subprocess.run(
            [sys.executable, "-m", "tracefill", "doctor", "--json", *arguments],
            cwd=tmp_path, env=environment | HEALTHY | variables, capture_output=True, text=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    return examine


def causes(document: dict[str, Any]) -> list[str]:
    return [finding["cause"] for finding in document["findings"]]


def found(document: dict[str, Any], cause: str) -> dict[str, Any]:
    [finding] = [finding for finding in document["findings"] if finding["cause"] == cause]
    return finding


# --- settings alone ---


def test_stock_with_a_name_is_healthy(examine: Examine) -> None:
    exit_code, document = examine()
    assert (exit_code, document["healthy"], document["findings"]) == (0, True, [])
    assert document["schema"] == "tracefill.doctor/1"
    assert document["environment"]["propagator"]["reads"] == ["tracecontext"]


def test_environment_tells_what_there_is(examine: Examine) -> None:
    _, document = examine(
        OTEL_PROPAGATORS="tracefill",
        OTEL_PYTHON_CONTEXT="tracefill",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.5",
    )
    environment = document["environment"]
    text = ["tracecontext", "b3", "b3multi", "jaeger", "xray", "datadog", "ottrace"]
    assert (environment["propagator"]["reads"], environment["propagator"]["writes"]) == (text, ["tracecontext"])
    assert environment["context"] == "tracefill._codec.RuntimeContext"
    assert "TraceIdRatioBased{0.5}" in environment["provider"]["sampler"]
    assert environment["provider"]["resource"]["service.name"] == "orders"
    assert document["healthy"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OTEL_SERVICE_NAME": ""}, ["service_name_missing"]),
        ({"OTEL_PROPAGATORS": "none"}, ["propagator_missing"]),
        ({"OTEL_PROPAGATORS": "baggage"}, ["propagator_missing"]),
        ({"OTEL_PROPAGATORS": "tracecontext,b4"}, ["propagator_unknown"]),
        ({"OTEL_PYTHON_CONTEXT": "nowhere"}, ["context_unknown"]),
        ({"OTEL_PYTHON_ID_GENERATOR": "nowhere"}, ["id_generator_unknown"]),
        ({"OTEL_TRACES_EXPORTER": "nowhere"}, ["exporter_unknown"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, ["exporter_missing"]),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, ["sampler_off"]),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, ["sampler_tears"]),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, ["sampler_unknown"]),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10%"}, ["sampler_argument"]),
        ({"OTEL_SDK_DISABLED": "true"}, ["sdk_disabled"]),
        ({"OTEL_SERVICE_NAME": "", "OTEL_PROPAGATORS": "none"}, ["propagator_missing", "service_name_missing"]),
        # and what is well
        ({"OTEL_PROPAGATORS": "b3"}, []),
        ({"OTEL_PROPAGATORS": "tracecontext, b3multi ,baggage"}, []),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, []),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, []),
        ({"OTEL_PYTHON_ID_GENERATOR": "tracefill"}, []),
    ],
    ids=lambda value: "-".join(f"{name}={one}" for name, one in value.items()) if isinstance(value, dict) else "",
)
def test_settings(examine: Examine, variables: dict[str, str], expected: list[str]) -> None:
    exit_code, document = examine(**variables)
    assert causes(document) == expected
    assert exit_code == (1 if expected else 0)
    assert all(finding["what"] and finding["cure"]["text"] for finding in document["findings"])


# --- an application ---


@pytest.mark.parametrize("instrumented", [CONTRIB, TRACEFILL, TRACEFILL + CONTRIB, CONTRIB + TRACEFILL])
def test_an_instrumented_application_is_healthy(examine: Examine, instrumented: str) -> None:
    exit_code, document = examine(SDK + instrumented + FLASK)
    assert (exit_code, document["findings"]) == (0, [])
    assert document["environment"]["provider"]["set"]


def test_what_is_on_is_told(examine: Examine) -> None:
    _, document = examine(SDK + CONTRIB + TRACEFILL + FLASK)
    assert document["environment"]["instrumentors"] == ["flask", "requests"]
    assert {"flask", "requests", "threads"} <= set(document["environment"]["installed"])


def test_nothing_is_instrumented(examine: Examine) -> None:
    exit_code, document = examine(SDK + FLASK)
    assert exit_code == 1
    assert causes(document) == ["library_not_covered", "span_missing"]
    assert found(document, "library_not_covered")["evidence"]["used_by"] == ["shop_app"]
    assert "requests" in found(document, "library_not_covered")["cure"]["config"]


def test_no_request_is_sent_when_none_is_wanted(examine: Examine) -> None:
    assert causes(examine(SDK + FLASK, "--no-request")[1]) == ["library_not_covered"]


def test_contrib_doubled(examine: Examine) -> None:
    middleware = (
        "from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as M; app.wsgi_app = M(app.wsgi_app)\n"
    )
    exit_code, document = examine(SDK + CONTRIB + FLASK + middleware)
    assert (exit_code, causes(document)) == (1, ["instrumented_twice"])
    scopes = [scope for scope, _ in found(document, "instrumented_twice")["evidence"]["spans"]]
    assert sorted(scopes) == ["opentelemetry.instrumentation.flask", "opentelemetry.instrumentation.wsgi"]


def test_contrib_switched_on_twice(examine: Examine) -> None:
    _, document = examine(SDK + CONTRIB + CONTRIB + FLASK)
    assert causes(document) == ["instrumented_twice"]


def test_spans_that_do_not_continue_what_arrives(examine: Examine) -> None:
    own = """
tracer = trace.get_tracer("own")
def app(environ, start_response):
    with tracer.start_as_current_span("request", kind=trace.SpanKind.SERVER):
        start_response("200 OK", [])
        return [b""]
"""
    _, document = examine(SDK + own)
    assert causes(document) == ["not_extracted"]


DJANGO = """
from django.conf import settings
settings.configure(ALLOWED_HOSTS=[".shop.example"], ROOT_URLCONF=__name__, MIDDLEWARE=[], SECRET_KEY="x")
urlpatterns = []
import django
django.setup()
from django.core.wsgi import get_wsgi_application
from django.core.asgi import get_asgi_application
"""
DJANGO_CONTRIB = DJANGO.replace(
    "import django\n",
    "import django\nfrom opentelemetry.instrumentation.django import DjangoInstrumentor\nDjangoInstrumentor().instrument()\n",
)


@pytest.mark.parametrize("source", [TRACEFILL + DJANGO, DJANGO_CONTRIB], ids=["tracefill", "contrib"])
@pytest.mark.parametrize("shape", ["wsgi", "asgi"])
def test_django_is_asked_by_a_host_that_it_allows(examine: Examine, source: str, shape: str) -> None:
    exit_code, document = examine(f"{SDK}{source}app = get_{shape}_application()\n")
    assert (exit_code, document["findings"]) == (0, [])
    if "instrument()" in source:
        assert causes(examine(f"{SDK}{source}app = get_{shape}_application()\n", "--host", "x")[1]) == ["span_missing"]


def test_the_server_half_of_a_library_is_not_taken_for_its_client(examine: Examine) -> None:
    source = SDK + "import aiohttp.web; app = aiohttp.web.Application()\n"
    assert causes(examine(source)[1]) == []
    assert causes(examine(source + "from aiohttp import ClientSession\n")[1]) == ["library_not_covered"]


def test_under_opentelemetry_instrument(tmp_path: Path) -> None:
    (tmp_path / "shop_app.py").write_text(SDK + FLASK)
    command = ["opentelemetry-instrument", "--traces_exporter", "console", "--metrics_exporter", "none",
               "--logs_exporter", "none", "tracefill", "doctor", "--app", "shop_app:app", "--json"]  # fmt: skip
    programs = os.environ | HEALTHY | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=programs, capture_output=True, text=True, timeout=DEADLINE_S)
    document = json.loads(done.stdout)
    assert (done.returncode, document["findings"]) == (0, []), done.stderr
    assert {"flask", "requests"} <= set(document["environment"]["instrumentors"])


def test_asgi_application_that_prints_and_fails(examine: Examine) -> None:
    failing = """
print("hello")
from starlette.applications import Starlette
from starlette.routing import Route
def fail(request): raise RuntimeError("out of stock")
app = Starlette(routes=[Route("/fail", fail)])
"""
    exit_code, document = examine(SDK + TRACEFILL + failing, "--path", "/fail")
    assert (exit_code, document["findings"]) == (0, [])
    assert [note["cause"] for note in document["notes"] if "stock" in note["what"]] == ["request_failed"]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("app = lambda environ, start_response: []", "provider_missing"),
        (SDK.replace("provider.add", "0 and provider.add") + CONTRIB + FLASK, "exporter_missing"),
        (SDK + "trace.set_tracer_provider(TracerProvider())\n" + CONTRIB + FLASK, "provider_set_twice"),
        ("class Same:\n    generate_trace_id = generate_span_id = lambda self: 7\n"
         + SDK.replace("TracerProvider()", "TracerProvider(id_generator=Same())") + CONTRIB + FLASK, "ids_repeat"),
        (SDK + CONTRIB + FLASK + "from opentelemetry import propagate as p\n"
         "from opentelemetry.propagators.composite import CompositePropagator\n"
         "p.set_global_textmap(CompositePropagator([]))\n", "propagator_missing"),
    ],
    ids=["provider_missing", "exporter_missing", "provider_set_twice", "ids_repeat", "propagator_missing"],
)  # fmt: skip
def test_what_an_application_has_set_itself(examine: Examine, source: str, cause: str) -> None:
    exit_code, document = examine(source)
    assert (exit_code, causes(document)) == (1, [cause])


def test_a_patch_that_somebody_replaced(examine: Examine) -> None:
    replaced = "requests.Session.send = lambda *a, **k: None\n"
    _, document = examine(SDK + TRACEFILL + FLASK + replaced)
    assert causes(document) == ["patch_lost"]
    assert found(document, "patch_lost")["evidence"]["integration"] == "requests"


def test_formats_that_arrive_and_nobody_reads(examine: Examine) -> None:
    traffic = """
import tracefill
for _ in range(3):
    tracefill.extract({"X-B3-TraceId": "a" * 32, "X-B3-SpanId": "b" * 16})
tracefill.extract({"traceparent": "nonsense"})
"""
    _, document = examine(SDK + traffic + TRACEFILL + FLASK, OTEL_PROPAGATORS="tracefill_tracecontext")
    assert causes(document) == ["format_not_read", "headers_malformed"]
    assert found(document, "format_not_read")["evidence"] == {"format": "b3multi", "count": 3}
    assert found(document, "headers_malformed")["evidence"]["reason"] == "too short"
    assert document["environment"]["counters"]["missing"] == 4
    _, document = examine(SDK + traffic + TRACEFILL + FLASK, OTEL_PROPAGATORS="tracefill")
    assert causes(document) == ["headers_malformed"] or document["healthy"]
    assert document["environment"]["counters"]["unread"] == {}


@pytest.mark.parametrize("app", ["nowhere:app", "shop_app:nothing", "shop_app", ":app"])
def test_application_that_cannot_be_imported(tmp_path: Path, app: str) -> None:
    (tmp_path / "shop_app.py").write_text("app = 1\n")
    command = [sys.executable, "-m", "tracefill", "doctor", "--app", app]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tracefill doctor: --app")
    assert "Traceback" not in done.stderr


def test_words_for_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tracefill", "doctor"]
    environment = os.environ | {"OTEL_SERVICE_NAME": "", "OTEL_PROPAGATORS": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.startswith("2 findings\n")
    assert "\n    OTEL_PROPAGATORS=tracefill\n" in done.stdout
    assert done.returncode == 1


# --- the counters as metrics ---


def test_counters_are_exported_as_metrics() -> None:
    code = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import json, tracefill
from tracefill.audit.doctor import observe
reader = InMemoryMetricReader()
observe(MeterProvider([reader]))
tracefill.extract({"b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"})
tracefill.extract({"traceparent": "00"})
tracefill.extract({})
tracefill.propagators.TraceContextPropagator().extract({"uber-trace-id": "1:2:0:1"})
metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
print(json.dumps({m.name: [[p.value, dict(p.attributes)] for p in m.data.data_points] for m in metrics}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert json.loads(done.stdout) == {
        "tracefill.extracted": [[1, {"format": "b3"}]],
        "tracefill.missing": [[3, {}]],
        "tracefill.unread": [[1, {"format": "jaeger"}]],
        "tracefill.malformed": [[1, {"format": "tracecontext", "reason": "too short"}]],
    }, done.stderr


LOOKED_THROUGH, ONE_IN = 1024, 64


def test_after_the_first_carriers_one_in_many_is_looked_through_and_counts_for_all() -> None:
    code = f"""
from tracefill._codec import counters
from tracefill.propagators import TraceContextPropagator
propagator = TraceContextPropagator()
for _ in range({LOOKED_THROUGH + 10 * ONE_IN}):
    propagator.extract({{"B3": "0"}})
print(counters()["unread"]["b3"], counters()["missing"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.split() == [str(LOOKED_THROUGH + 10 * ONE_IN)] * 2, done.stderr


def test_a_module_that_holds_lazy_objects_is_looked_through() -> None:
    """Django's settings raise at any look, `isinstance` included, where nobody has configured them."""
    program = (
        "import sys, types\n"
        "from django.conf import settings\n"
        "shop = sys.modules['shop'] = types.ModuleType('shop')\n"
        "other = sys.modules['opentelemetry.instrumentation.shop'] = types.ModuleType('shop')\n"
        "shop.settings = other.settings = settings\n"
        "import requests, tracefill.audit.doctor.examination as doctor\n"
        "shop.requests = requests\n"
        "print(len(doctor.examine().findings) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr[-2000:]
