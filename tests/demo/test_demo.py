"""`tracefill demo`: the run itself, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DEMO = [sys.executable, "-m", "tracefill", "demo"]


def services() -> list[psutil.Process]:
    """The processes of any demo that is running."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "tracefill.demo." in line:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [*DEMO, "--orders", "8", "--json", "--keep", str(folder)], capture_output=True, text=True, timeout=180
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
        [*DEMO, "--orders", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 60
    while len(services()) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(services()) >= 4
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(60) == 130
    assert services() == []


def test_a_demo_that_is_killed_takes_its_services_along() -> None:
    demo = subprocess.Popen([*DEMO, "--orders", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(services()) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    demo.kill()
    demo.wait()
    until = time.monotonic() + 60
    while services() and time.monotonic() < until:
        time.sleep(0.1)
    assert services() == []
