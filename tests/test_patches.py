"""install(), uninstall() and installed(): idempotent, reversible, whatever the order; and by opentelemetry-instrument."""

import json
import os
import sched  # noqa: F401  the integration of this name waits for it
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tracefill
from tracefill.patches import Instrumentor

INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    tracefill.uninstall()


def run(program: str, *command: str, **environment: str) -> Any:
    """What the program prints as its last line, read as JSON; it runs in an interpreter of its own."""
    found = subprocess.run(
        [*(command or (sys.executable,)), "-c", textwrap.dedent(program)],
        env=os.environ | {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


# Every class and module of these libraries, with every attribute: what install() changes, uninstall() must restore.
REVERSED = """
    import importlib, json, sys, tracefill
    for name in ("concurrent.futures", "threading", "queue", "sched", "subprocess", "asyncio", "multiprocessing.pool",
                 "http.client", "http.server", "urllib.request", "sqlite3", "wsgiref.simple_server", "requests", "httpx",
                 "urllib3", "flask", "starlette.applications", "fastapi", "grpc.aio", "kafka", "confluent_kafka",
                 "psycopg", "redis", "sqlalchemy", "apscheduler.schedulers.background", "celery", "rq", "huey"):
        importlib.import_module(name)

    def seen():
        found = {}
        for module in modules:
            owners = [module, *(v for v in vars(module).values() if isinstance(v, type))]
            for owner in owners:
                for name, value in list(vars(owner).items()):
                    if not name.startswith(("__", "_abc_")):
                        found[f"{module.__name__}:{owner.__name__}.{name}"] = id(value)
        return found

    tracefill.install(queues=True, subprocess=True)
    tracefill.uninstall()
    modules = [m for name, m in sys.modules.items() if m and not name.startswith(("tracefill", "__m"))]
    before = seen()
    for _ in range(2):
        tracefill.install(queues=True, subprocess=True)
    during = seen()
    tracefill.uninstall()
    after = seen()
    changed = sum(before[name] != during.get(name) for name in before)
    left = [name for name in before if before[name] != after.get(name)] + sorted(set(after) - set(before))
    print(json.dumps({"changed": changed, "left": left}))
"""


def test_uninstall_restores_everything() -> None:
    found = run(REVERSED)
    assert found["changed"] > 50
    assert found["left"] == []


def test_installed_names_what_is_on() -> None:
    tracefill.install(only=["threads", "sched"])
    assert tracefill.installed() == ["sched", "threads"]
    tracefill.install(only=["threads"])
    assert tracefill.installed() == ["sched", "threads"]
    tracefill.uninstall()
    assert tracefill.installed() == []
    tracefill.uninstall()


def test_skip_leaves_out_and_opt_ins_are_asked_for() -> None:
    tracefill.install(skip=["threads"])
    assert not {"threads", "queues", "subprocess"} & set(tracefill.installed())
    tracefill.install(queues=True)
    assert {"threads", "queues"} <= set(tracefill.installed())
    assert "subprocess" not in tracefill.installed()


def test_names_that_do_not_exist_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"no integration is called thread; there are .*threads"):
        tracefill.install(only=["thread"])
    with pytest.raises(TypeError, match=r"write \['threads'\]"):
        tracefill.install(only="threads")
    assert tracefill.installed() == []


def test_library_that_is_imported_later_is_patched_then() -> None:
    program = """
        import json, sys, tracefill
        tracefill.install()
        before = "requests" in tracefill.installed() or "requests" in sys.modules
        import requests
        print(json.dumps([before, "requests" in tracefill.installed(), requests.__spec__.loader.__class__.__module__]))
    """
    before, after, loader = run(program)
    assert not before
    assert after
    assert not loader.startswith("tracefill")


def test_library_of_an_unknown_version_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    from tracefill.handoff import sched as integration

    class Broken(Exception):
        pass

    def fail() -> None:
        raise Broken

    original, integration.patch = integration.patch, fail
    try:
        tracefill.install(only=["sched", "threads"])
    finally:
        integration.patch = original
    assert tracefill.installed() == ["threads"]
    assert [record.message for record in caplog.records] == ["sched could not be switched on and is left as it was"]


INSTALLED = "import json, requests, tracefill; print(json.dumps(tracefill.installed()))"


def test_opentelemetry_instrument_installs() -> None:
    assert {"threads", "requests"} <= set(run(INSTALLED, str(INSTRUMENT), sys.executable))


def test_opentelemetry_instrument_can_leave_it_out() -> None:
    assert run(INSTALLED, str(INSTRUMENT), sys.executable, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="tracefill") == []
    assert run(INSTALLED, str(INSTRUMENT), sys.executable, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*") == []


def test_library_that_is_disabled_gets_no_spans_from_us_either() -> None:
    found = run(INSTALLED, str(INSTRUMENT), sys.executable, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="requests, flask")
    assert "requests" not in found
    assert "threads" in found


def test_opentelemetry_instrument_opts_in_by_a_variable() -> None:
    found = run(INSTALLED, str(INSTRUMENT), sys.executable, TRACEFILL_OPT_IN="queues,subprocess")
    assert {"queues", "subprocess"} <= set(found)


def test_opt_in_that_does_not_exist_is_named(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRACEFILL_OPT_IN", "queue")
    Instrumentor().instrument(only=["threads"], skip_dep_check=True)
    assert [record.message for record in caplog.records] == [
        "TRACEFILL_OPT_IN names 'queue', which is not to be had; expected queues or subprocess"
    ]


def test_one_span_with_every_instrumentor_of_contrib_on() -> None:
    program = """
        import http.server, json, threading
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        import requests

        spans = InMemorySpanExporter()
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        requests.get(f"http://127.0.0.1:{server.server_port}/", timeout=30)
        server.shutdown()
        print(json.dumps(sorted(str(span.kind.name) for span in spans.get_finished_spans())))
    """
    found = run(program, str(INSTRUMENT), sys.executable)
    assert found == ["CLIENT", "SERVER"]
