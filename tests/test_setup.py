"""`tracefill.setup()`, each time in a program of its own."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOW = """
import json
provider = trace.get_tracer_provider()
print(json.dumps({
    "resource": {name: str(value) for name, value in provider.resource.attributes.items()},
    "ids": type(provider.id_generator).__module__ + "." + type(provider.id_generator).__name__,
    "propagator": type(propagate.get_global_textmap()).__name__,
    "exporters": [type(getattr(getattr(p, "_batch_processor", p), "_exporter", getattr(p, "span_exporter", p))).__name__
                  for p in provider._active_span_processor._span_processors],
    "sampler": provider.sampler.get_description(),
    "installed": tracefill.installed(),
}))
"""


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program that begins with `import tracefill`, in an environment without any variable of OpenTelemetry's but these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AWS_", "KUBERNETES_"))}
    start = "import tracefill\nfrom opentelemetry import propagate, trace\n"
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program)],
        env={**plain, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def shown(call: str, **variables: str) -> tuple[dict[str, Any], str]:
    """What is in force after this call, and what was said on the way."""
    done = run(call + SHOW, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


class TestDefaults:
    def test_one_call_sets_up_all(self) -> None:
        found, said = shown("tracefill.setup(service_name='shop')", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
        assert found["resource"]["service.name"] == "shop"
        assert found["ids"] == "tracefill.ids.FastIdGenerator"
        assert found["propagator"] == "TracefillPropagator"
        assert found["exporters"] == ["OTLPSpanExporter"]
        assert found["sampler"].startswith("ParentBased{root:AlwaysOnSampler")
        assert {"threads", "logs"} <= set(found["installed"])
        assert said == ""

    def test_the_resource_knows_the_service_and_the_host(self) -> None:
        call = "tracefill.setup('shop', service_version='1.4', environment='staging', attributes={'team': 'a'})"
        resource = shown(call, OTEL_TRACES_EXPORTER="none")[0]["resource"]
        expected = {"service.name": "shop", "service.version": "1.4", "deployment.environment.name": "staging"}
        assert {**expected, "team": "a"}.items() <= resource.items()
        assert resource["host.name"] == os.uname().nodename
        assert resource["telemetry.sdk.name"] == "opentelemetry"
        assert not any(name.startswith("process.command") for name in resource)

    def test_a_missing_service_name_is_said_aloud(self) -> None:
        found, said = shown("tracefill.setup()", OTEL_TRACES_EXPORTER="none")
        assert found["resource"]["service.name"].startswith("unknown_service")
        assert "no service.name" in said
        assert "OTEL_SERVICE_NAME" in said


class TestVariables:
    def test_they_say_what_is_not_given(self) -> None:
        found, said = shown(
            "tracefill.setup()",
            OTEL_SERVICE_NAME="from-variable",
            OTEL_RESOURCE_ATTRIBUTES="service.version=2,deployment.environment.name=live,host.name=web-1",
            OTEL_TRACES_EXPORTER="console",
            OTEL_TRACES_SAMPLER="always_off",
            OTEL_PROPAGATORS="tracefill_b3",
            OTEL_PYTHON_ID_GENERATOR="tracefill_time_ordered",
        )
        resource = found["resource"]
        expected = {"service.name": "from-variable", "service.version": "2", "deployment.environment.name": "live"}
        assert {**expected, "host.name": "web-1"}.items() <= resource.items()
        assert found["exporters"] == ["ConsoleSpanExporter"]
        assert found["sampler"] == "AlwaysOffSampler"
        assert found["propagator"] != "TracefillPropagator"
        assert found["ids"] == "tracefill.ids.TimeOrderedIdGenerator"
        assert said == ""

    def test_what_is_given_wins(self) -> None:
        found, _ = shown("tracefill.setup('given')", OTEL_SERVICE_NAME="variable", OTEL_TRACES_EXPORTER="none")
        assert found["resource"]["service.name"] == "given"

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            (
                {"AWS_LAMBDA_FUNCTION_NAME": "pay", "AWS_REGION": "eu-central-1"},
                {
                    "cloud.provider": "aws",
                    "cloud.platform": "aws_lambda",
                    "cloud.region": "eu-central-1",
                    "faas.name": "pay",
                },
            ),
            ({"K_SERVICE": "pay"}, {"cloud.provider": "gcp", "faas.name": "pay"}),
            ({"WEBSITE_SITE_NAME": "pay"}, {"cloud.provider": "azure", "cloud.platform": "azure.app_service"}),
            ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "pay-7f"}, {"k8s.pod.name": "pay-7f"}),
        ],
    )
    def test_the_cloud_is_told_by_its_environment(self, variables: dict[str, str], expected: dict[str, str]) -> None:
        found, _ = shown("tracefill.setup('shop')", OTEL_TRACES_EXPORTER="none", **variables)
        assert expected.items() <= found["resource"].items()

    def test_a_declarative_file_says_all(self, tmp_path: Path) -> None:
        pytest.importorskip("opentelemetry.configuration")
        file = tmp_path / "otel.yaml"
        file.write_text(
            "file_format: '1.0'\nresource:\n  attributes:\n    - {name: service.name, value: by-file}\n"
            "tracer_provider:\n  processors:\n    - simple: {exporter: {console: {}}}\n"
        )
        found, said = shown("tracefill.setup('shop')", OTEL_CONFIG_FILE=str(file))
        assert found["resource"]["service.name"] == "by-file"
        assert found["exporters"] == ["ConsoleSpanExporter"]
        assert "OTEL_CONFIG_FILE is set" in said


class TestMistakes:
    def test_an_exporter_that_is_missing_is_named_with_the_cure(self) -> None:
        done = run("tracefill.setup('shop')", OTEL_TRACES_EXPORTER="nonsense")
        assert done.returncode == 1
        assert "TracefillError: tracefill.setup(): Requested component 'nonsense' not found" in done.stderr

    def test_the_grpc_exporter_is_named_by_its_package(self) -> None:
        hidden = "import tracefill.startup as s; offered = s._offered; s._offered = lambda g: offered(g) - {'otlp_proto_grpc'}\n"
        done = run(hidden + "tracefill.setup('shop')", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        if done.returncode == 0:
            pytest.skip("the exporter is installed")
        assert "pip install opentelemetry-exporter-otlp-proto-grpc" in done.stderr

    def test_a_missing_sdk_is_said_with_the_cure(self, tmp_path: Path) -> None:
        # A finder that knows no SDK: what an environment without it looks like to an import.
        hide = """
            import sys

            class NoSDK:
                def find_spec(self, name, path=None, target=None):
                    if name.startswith("opentelemetry.sdk"):
                        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

            sys.meta_path.insert(0, NoSDK())
            tracefill.setup("shop")
        """
        done = run(hide)
        assert done.returncode == 1
        assert (
            "TracefillError: tracefill.setup() needs OpenTelemetry's SDK: `pip install 'tracefill[sdk]'" in done.stderr
        )

    def test_a_provider_that_is_there_is_kept(self) -> None:
        program = """
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            own = TracerProvider(resource=Resource.create({"service.name": "own"}))
            trace.set_tracer_provider(own)
            assert tracefill.setup("shop") is own
            assert tracefill.installed()
        """
        done = run(program)
        assert done.returncode == 0, done.stderr
        assert "a TracerProvider is in force already" in done.stderr


@pytest.fixture
def collector() -> Iterator[Any]:
    """The smallest OTLP receiver: `.bodies` of what was sent to /v1/traces, `.port`."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies, thread = bodies, threading.Thread(target=server.serve_forever, args=(0.01,))  # type: ignore[attr-defined]
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_of_a_short_program_arrive_with_their_tags(collector: Any, tmp_path: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    file = tmp_path / "tags.toml"
    file.write_text('[env]\nenvironment = "SHOP_ENV"\n')
    program = f"""
        tracefill.setup("shop", tags={str(file)!r})
        import threading
        with trace.get_tracer("t").start_as_current_span("request"):
            thread = threading.Thread(target=lambda: trace.get_tracer("t").start_span("work").end())
            thread.start()
            thread.join()
    """
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, SHOP_ENV="test", OTEL_EXPORTER_OTLP_COMPRESSION="none")
    assert done.returncode == 0, done.stderr
    spans = {}
    for body in collector.bodies:
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert names["service.name"] == "shop"
            spans.update({span.name: span for scope in resource.scope_spans for span in scope.spans})
    assert set(spans) == {"request", "work"}
    assert spans["work"].parent_span_id == spans["request"].span_id
    for span in spans.values():
        assert {pair.key: pair.value.string_value for pair in span.attributes}["env"] == "test"
