"""`tracefill demo`: the run itself, its exit codes, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psutil
import pytest

from tracefill.demo import nginx, tree
from tracefill.demo.tree import Span

if TYPE_CHECKING:
    from tests.servers.jaeger import Jaeger

DEMO = [sys.executable, "-m", "tracefill", "demo"]
OURS = {"SHOP_TESTS": str(os.getpid())}  # tells our demos from one that somebody else runs on this machine


INSTALLED = {
    "nginx": shutil.which("nginx"),
    "beam.smp": shutil.which("rabbitmq-server") and shutil.which("epmd"),
}
STEPS = {"look up price", "confirm order", "remind", "write invoice", "pick", "send mail"}


def processes() -> list[str]:
    """The command lines of our demos' processes but the demos themselves: services, workers of their pools, servers."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if OURS.items() <= environment.items() and line[1:] and line[: len(DEMO)] != DEMO:
            found.append(" ".join(line))
    return found


def demo(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | OURS | variables
    return subprocess.run([*DEMO, *arguments], env=environment, capture_output=True, text=True, timeout=240)


def spans_of_run(folder: Path) -> dict[str, list[Span]]:
    """The spans of each trace."""
    traces: dict[str, list[Span]] = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            for span in tree.spans_of(json.loads(line)):
                traces.setdefault(span.trace_id, []).append(span)
    return traces


@dataclass
class Run:
    """What a run with --json said, and left behind."""

    done: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        assert self.done.returncode == 0, self.done.stdout + self.done.stderr
        document: dict[str, Any] = json.loads(self.done.stdout)
        return document

    @cached_property
    def traces(self) -> dict[str, list[Span]]:
        return spans_of_run(self.folder / "tracefill")

    @cached_property
    def orders(self) -> list[list[Span]]:
        """The traces in which an order was taken."""
        return [trace for trace in self.traces.values() if any(span.service == "gateway" for span in trace)]

    def has(self, server: str) -> bool:
        return f"without {server}:" not in self.done.stderr

    @property
    def steps(self) -> set[str]:
        return STEPS if self.has("RabbitMQ") else STEPS - {"send mail"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    return Run(demo("--orders", "8", "--json", "--keep", str(folder)), folder)


def test_every_chain_of_tracefill_is_whole_and_stock_breaks_some(run: Run) -> None:
    runs = run.document["runs"]
    kept = runs["tracefill"]["chains"]
    assert kept["whole"] == kept["total"] >= 24
    assert kept["torn_off"] == 0
    assert [f for f in runs["tracefill"]["findings"] if f["breaks"]] == []
    assert runs["stock"]["chains"]["whole"] < runs["stock"]["chains"]["total"]


def test_every_step_is_on_the_chain_of_its_order(run: Run) -> None:
    steps = run.document["steps"]
    total = 24 * len(run.steps)
    assert steps["tracefill"] == {"on_chain": total, "total": total}
    assert steps["stock"]["total"] == total
    assert 0 < steps["stock"]["on_chain"] < total
    for trace in run.orders:
        assert {span.name for span in trace} >= run.steps


def test_what_stock_loses_is_told_with_its_cause(run: Run) -> None:
    findings = run.document["runs"]["stock"]["findings"]
    lost = {(finding["via"], finding["cause"]) for finding in findings if finding["breaks"]}
    # Where the order waits for what is lost, the spans show it whatever the machine is busy with.
    assert lost >= {("write invoice", "handoff_lost"), ("POST /orders/{order_no}", "not_propagated")}


def test_b3_and_w3c_callers_and_guests_all_reach_the_last_service(run: Run) -> None:
    chain = {"gateway", "orders", "pricing", "warehouse"} | ({"mailer"} if run.has("RabbitMQ") else set())
    reached = sorted(sorted({span.service for span in trace} - chain) for trace in run.orders)
    assert all({span.service for span in trace} >= chain for trace in run.orders)
    assert reached == [[]] * 8 + [["legacy-storefront"]] * 8 + [["storefront"]] * 8


def above(span: Span, trace: list[Span]) -> list[str]:
    """Where a span comes from: names and kinds, up to the server span of the orders service."""
    by_id = {one.span_id: one for one in trace}
    found: list[str] = []
    while (parent := by_id.get(span.parent_id)) is not None and (parent.service, parent.kind) != ("orders", "server"):
        found.append(f"{parent.name} ({parent.kind})")
        span = parent
    return found


@pytest.mark.parametrize(
    ("step", "way"),
    [
        ("check order", []),
        ("look up price", ["shop.Pricing/Quote (server)", "shop.Pricing/Quote (client)", "check order (internal)"]),
        ("publish order", []),
        ("pick", ["process orders.placed (consumer)", "send orders.placed (producer)", "publish order (internal)"]),
        ("remind", []),
        ("write invoice", []),
        ("confirm order", ["run tracefill.demo.shop:_confirm (internal)"]),
        ("send mail", ["process notifications (consumer)", "send notifications (producer)", "pick (internal)"]),
    ],
)
def test_each_hop_has_its_place_in_the_order(run: Run, step: str, way: list[str]) -> None:
    if step == "send mail" and not run.has("RabbitMQ"):
        pytest.skip(run.done.stderr)
    for trace in run.orders:
        [span] = [span for span in trace if span.name == step]
        assert above(span, trace)[: len(way)] == way


def test_the_invoice_is_written_by_another_process(run: Run) -> None:
    files = [path.name for path in (run.folder / "tracefill").glob("orders-worker-*.jsonl")]
    assert len(files) == 1
    assert "write invoice" not in (run.folder / "tracefill" / "orders.jsonl").read_text()


def test_statements_are_on_the_chain_below_the_step_that_made_them(run: Run) -> None:
    into = {"pick": "orders", "write invoice": "invoices", "remind": "reminders", "confirm order": "confirmations"}
    for trace in run.orders:
        by_id = {span.span_id: span for span in trace}
        texts = {
            by_id[span.parent_id].name: span.attributes["db.query.text"]
            for span in trace
            if span.attributes.get("db.query.text")
        }
        for step, table in into.items():
            assert texts[step].startswith(f"insert into {table} ")


def test_tags_reach_the_last_hop_of_each_branch(run: Run) -> None:
    callers = {"storefront", "legacy-storefront"}
    for trace in run.orders:
        told = {
            (span.attributes.get("tenant_id"), span.attributes.get("order_no"))
            for span in trace
            if span.service not in callers
        }
        assert len(told) == 1
        [(tenant_id, order_no)] = told
        assert tenant_id == "acme"
        assert order_no.rpartition("-")[0] in {"storefront", "legacy-storefront", "guest"}


def test_a_job_that_runs_again_and_again_is_a_root_with_a_link_to_who_scheduled_it(run: Run) -> None:
    again = [trace for trace in run.traces.values() if any(span.name == "count stock" for span in trace)]
    assert again
    for trace in again:
        [root] = [span for span in trace if not span.parent_id]
        assert root.name.endswith("_count_stock")
        assert len(root.links) == 1
        assert any(span.name == "POST /orders" for span in run.traces[root.links[0]])


def test_nginx_logs_the_order_by_the_id_of_its_trace(run: Run) -> None:
    if not run.has("nginx"):
        pytest.skip(run.done.stderr)
    log = (run.folder / "tracefill" / "access.log").read_text().splitlines()
    through = {entry["request_id"]: entry["uri"] for entry in map(json.loads, log)}
    assert len(through) == 16  # the legacy storefront comes from inside
    for trace_id, uri in through.items():
        [entry] = [span for span in run.traces[trace_id] if (span.service, span.kind) == ("gateway", "server")]
        assert uri.endswith(entry.attributes["order_no"])


def test_the_configuration_of_nginx_is_the_documented_one() -> None:
    documented = Path(__file__).resolve().parents[2] / "docs" / "nginx.conf"
    if not documented.exists():
        pytest.skip("no docs beside the tests")
    lines = documented.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == nginx.TRACED.strip().splitlines()
    for line in lines:
        if "proxy_set_header" in line:
            assert line.strip("# ") in nginx.CONFIGURATION


def test_no_process_is_left_behind(run: Run) -> None:
    assert processes() == []


def test_without_nginx_and_rabbitmq_the_demo_says_so_and_goes_on(tmp_path: Path) -> None:
    done = demo("--orders", "3", "--keep", str(tmp_path), PATH=str(tmp_path), TRACEFILL_RABBITMQ="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without RabbitMQ: rabbitmq-server is not on the PATH" in done.stderr
    assert "without nginx: nginx is not on the PATH" in done.stderr
    assert "45 of 45" in done.stdout
    assert "mailer" not in done.stdout
    assert processes() == []


def test_servers_that_do_not_start_are_as_good_as_none(tmp_path: Path) -> None:
    for name in ("nginx", "rabbitmq-server"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken by an upgrade >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    done = demo("--orders", "1", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", TRACEFILL_RABBITMQ="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without nginx: the nginx of the demo did not start:\nbroken by an upgrade" in done.stderr
    assert "without RabbitMQ: the rabbitmq of the demo did not start:\nbroken by an upgrade" in done.stderr
    assert processes() == []


def test_a_kafka_that_is_named_is_used_and_orders_of_other_runs_stay_where_they_are(kafka: Any) -> None:
    for _ in range(2):
        done = demo("--orders", "2", TRACEFILL_KAFKA=kafka.address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "send orders.placed." in done.stdout


def test_the_report_shows_each_hop_the_statement_and_the_tags(tmp_path: Path, rabbitmq: Any) -> None:
    done = demo("--orders", "2", TRACEFILL_RABBITMQ=rabbitmq.url)
    assert done.returncode == 0, done.stdout + done.stderr
    tags = "[tenant_id=acme, order_no=storefront-0]"
    for line in (
        "gateway: POST /orders/{order_no} (server, ",
        "pricing: shop.Pricing/Quote (server, ",
        "warehouse: process orders.placed (consumer, ",
        f"insert into orders values (?, ?) {tags}",
        f"insert into notifications values (?) {tags}",
        f"insert into invoices values (?, ?) {tags}",
        "-> link to trace ",
        "100.0 %",
        "36 of 36",
    ):
        assert line in done.stdout, done.stdout
    assert processes() == []


def test_a_rabbitmq_that_is_named_and_not_there_ends_the_demo() -> None:
    done = demo("--orders", "1", TRACEFILL_RABBITMQ="amqp://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "of the demo did not start" in done.stderr
    assert processes() == []


@contextlib.contextmanager
def begun() -> Iterator[subprocess.Popen[bytes]]:
    """A demo that has more to do than anybody waits for."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # who is killed leaves his files
        environment = os.environ | OURS | {"TMPDIR": scratch}
        demo = subprocess.Popen([*DEMO, "--orders", "5000"], env=environment, start_new_session=True, **quiet)
        try:
            yield demo
        finally:
            demo.kill()
            demo.wait()


def wait_for(*names: str) -> None:
    """Until there is a process of each name."""
    until = time.monotonic() + 120
    while not all(any(name in line for line in processes()) for name in names):
        assert time.monotonic() < until, (names, processes())
        time.sleep(0.02)


def wait_for_the_whole_shop() -> None:
    servers = [f"/{name} " for name in ("nginx", "beam.smp") if INSTALLED[name]]
    wait_for("demo.broker", "service gateway", "service orders", "spawn_main", *servers)


def test_ctrl_c_ends_everything() -> None:
    with begun() as demo:
        wait_for_the_whole_shop()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 130
        assert processes() == []


@pytest.mark.parametrize("name", ["tracefill.demo", "demo.broker", "service mailer", "service gateway"])
def test_ctrl_c_while_it_starts_ends_everything(name: str) -> None:
    if name == "service mailer" and not INSTALLED["beam.smp"]:
        pytest.skip("without RabbitMQ there is nobody to write to the customer")
    with begun() as demo:
        wait_for(name)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 130
        assert processes() == []


@pytest.mark.parametrize("name", ["tracefill.demo", "demo.broker", "service gateway", "the whole shop"])
def test_a_demo_that_is_killed_takes_everything_along(name: str) -> None:
    with begun() as demo:
        wait_for_the_whole_shop() if name == "the whole shop" else wait_for(name)
        demo.kill()
        demo.wait()
        until = time.monotonic() + 90
        while processes() and time.monotonic() < until:
            time.sleep(0.1)
        assert processes() == []


# --- with a real Jaeger ---


@pytest.fixture(scope="module")
def run_with_jaeger(jaeger: Jaeger) -> dict[str, Any]:
    done = subprocess.run(
        [*DEMO, "--orders", "6", "--json", "--jaeger", jaeger.otlp.removesuffix("/v1/traces")],
        env=os.environ | OURS, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracefill audit --edge 0 'http://127.0.0.1:16686/?since=") == 2
    runs: dict[str, Any] = json.loads(done.stdout)["runs"]
    return runs


@pytest.mark.parametrize("api", ["", "/api/v3"])
@pytest.mark.parametrize("mode", ["stock", "tracefill"])
def test_completeness_read_back_from_jaeger_is_that_of_the_files(
    jaeger: Jaeger, run_with_jaeger: dict[str, Any], mode: str, api: str
) -> None:
    told = run_with_jaeger[mode]
    begin, end = (
        datetime.fromtimestamp(int(told["window"][f"{name}_unix_nano"]) / 1e9, timezone.utc)
        for name in ("start", "end")
    )
    times = urlencode({"since": begin - timedelta(milliseconds=5), "until": end + timedelta(milliseconds=5)})
    audit = [sys.executable, "-m", "tracefill", "audit", "--json", "--edge", "0", f"{jaeger.url}{api}?{times}"]
    done = subprocess.run(audit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read_back = json.loads(done.stdout)
    assert read_back["input"]["spans"] == told["input"]["spans"]
    assert read_back["chains"] == told["chains"]
    assert broken(read_back) == broken(told)
    assert (read_back["chains"]["share"] == 1) == (mode == "tracefill")


def broken(document: dict[str, Any]) -> list[tuple[object, ...]]:
    words = ("cause", "layer", "from", "to", "via", "count")
    return sorted(tuple(f[word] for word in words) for f in document["findings"] if f["breaks"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "localhost:4318", "http://"])
def test_a_jaeger_that_is_not_there_is_one_line_and_nothing_is_started(url: str) -> None:
    done = subprocess.run([*DEMO, "--jaeger", url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert url in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
