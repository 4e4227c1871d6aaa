"""`tracefill demo`: the run itself, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psutil
import pytest

if TYPE_CHECKING:
    from tests.servers.jaeger import Jaeger

DEMO = [sys.executable, "-m", "tracefill", "demo"]
OURS = {"SHOP_TESTS": str(os.getpid())}  # tells our demos from one that somebody else runs on this machine


def services() -> list[psutil.Process]:
    """The processes of our demos that are running."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line, environment = " ".join(process.info["cmdline"] or ()), process.info["environ"] or {}
        if "tracefill.demo." in line and OURS.items() <= environment.items():
            found.append(process)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [*DEMO, "--orders", "8", "--json", "--keep", str(folder)],
        env=os.environ | OURS,
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done, folder


def test_every_chain_of_tracefill_is_whole_and_stock_breaks_some(
    run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = run
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert runs["tracefill"]["chains"] == {"whole": 24, "total": 24, "share": 1.0, "torn_off": 0, "begun_outside": 0}
    assert [f for f in runs["tracefill"]["findings"] if f["breaks"]] == []
    assert runs["stock"]["chains"]["whole"] < runs["stock"]["chains"]["total"]


def test_b3_and_w3c_callers_and_strangers_all_reach_the_warehouse(
    run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, folder = run
    from tracefill.audit import readers

    spans = readers.read([str(path) for path in (folder / "tracefill").glob("*.jsonl")], processes=1)
    by_trace: dict[tuple[int, int], set[str]] = {}
    for row in range(len(spans)):
        trace = (int(spans["trace_id_high"][row]), int(spans["trace_id_low"][row]))
        by_trace.setdefault(trace, set()).add(spans.text("service", row))
    chain = {"gateway", "orders", "warehouse"}
    reached = sorted(sorted(services - chain) for services in by_trace.values() if services >= chain)
    assert reached == [[]] * 8 + [["legacy-storefront"]] * 8 + [["storefront"]] * 8


def test_no_process_is_left_behind(run: object) -> None:
    assert services() == []


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--orders", "5000"],
        env=os.environ | OURS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while len(services()) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(services()) >= 4
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(60) == 130
    assert services() == []


def test_a_demo_that_is_killed_takes_its_services_along() -> None:
    demo = subprocess.Popen(
        [*DEMO, "--orders", "5000"], env=os.environ | OURS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while len(services()) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    demo.kill()
    demo.wait()
    until = time.monotonic() + 60
    while services() and time.monotonic() < until:
        time.sleep(0.1)
    assert services() == []


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
