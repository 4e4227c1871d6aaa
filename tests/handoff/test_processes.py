"""Process pools and processes: the patch is undone, the pool of snapshots is back at zero, the far side sets itself up."""

from __future__ import annotations

import concurrent.futures.process
import gc
import json
import multiprocessing
import multiprocessing.pool
import multiprocessing.process
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import PatchContract
from tracefill import snapshots

tracer = trace.get_tracer("tests")
fork = multiprocessing.get_context("fork")


class TestPatch(PatchContract):
    name = "processes"

    def owners(self) -> list[Any]:
        return [
            multiprocessing.process.BaseProcess,
            multiprocessing.pool.Pool,
            multiprocessing.pool.ThreadPool,
            concurrent.futures.process.ProcessPoolExecutor,
        ]


@pytest.fixture
def installed() -> Any:
    tracefill.install(only=["processes"])
    yield
    tracefill.uninstall()


def position() -> tuple[int, int]:
    held = trace.get_current_span().get_span_context()
    return held.trace_id, held.span_id


def fail() -> None:
    raise ValueError("of the job")


@pytest.mark.usefixtures("installed")
def test_every_snapshot_comes_back() -> None:
    gc.collect()
    before = snapshots.stats().in_use
    with ProcessPoolExecutor(1, fork) as pool, tracer.start_as_current_span("near"):
        assert pool.submit(position).result() == position()
        assert isinstance(pool.submit(fail).exception(), ValueError)
        waiting = [pool.submit(position) for _ in range(20)]
        cancelled = [future.cancel() for future in waiting]
        assert any(cancelled)
    process = fork.Process(target=position)
    with tracer.start_as_current_span("near"):
        process.start()
        process.join()
    del waiting
    gc.collect()
    assert snapshots.stats().in_use == before


@pytest.mark.usefixtures("installed")
def test_nothing_is_added_to_a_process_object() -> None:
    process = fork.Process(target=position)
    process.start()
    assert "_tracefill" not in vars(process)
    process.join()


@pytest.mark.usefixtures("installed")
def test_what_cannot_be_called_fails_in_the_future_as_before() -> None:
    with ProcessPoolExecutor(1, fork) as pool:
        assert isinstance(pool.submit("no function").exception(), TypeError)  # type: ignore[arg-type]


@pytest.mark.usefixtures("installed")
def test_a_callable_that_is_bound_already_keeps_its_context() -> None:
    with tracer.start_as_current_span("near"):
        bound = tracefill.bind(position)
        here = position()
    with ProcessPoolExecutor(1, fork) as pool, tracer.start_as_current_span("another"):
        assert pool.submit(bound).result() == here


@pytest.mark.usefixtures("installed")
def test_baggage_rides_along() -> None:
    context = tracefill.extract({"traceparent": f"00-{1:032x}-{2:016x}-01", "baggage": "tenant=blue"})
    with tracefill.context.scope(context), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        headers: dict[str, str] = pool.submit(injected).result()
    assert headers == {"traceparent": f"00-{1:032x}-{2:016x}-01", "baggage": "tenant=blue"}


def injected() -> dict[str, str]:
    headers: dict[str, str] = {}
    tracefill.inject(headers)
    return headers


# A worker's module sets up the SDK, as a user's would, and never names tracefill.
WORKER = """
import json, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())

def work(path):
    import sys, threading
    from concurrent.futures import ThreadPoolExecutor
    installed = sys.modules["tracefill"].installed() if "tracefill" in sys.modules else []
    found = {"trace": trace.get_current_span().get_span_context().trace_id, "installed": installed}
    with open(path, "a") as out:
        print(json.dumps(found), file=out)
"""

MAIN = """
import multiprocessing, sys, worker
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    import tracefill
    tracefill.install(queues=True, subprocess=True)
    context = multiprocessing.get_context(sys.argv[2])
    with worker.trace.get_tracer("tests").start_as_current_span("near") as near:
        print(near.get_span_context().trace_id)
        process = context.Process(target=worker.work, args=(sys.argv[1],))
        process.start()
        process.join()
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(worker.work, sys.argv[1]).result()
        with context.Pool(1) as pool:
            pool.apply(worker.work, (sys.argv[1],))
    print(*tracefill.installed())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_far_side_sets_itself_up(tmp_path: Path, method: str) -> None:
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    (tmp_path / "main.py").write_text(MAIN)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "main.py", str(out), method],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    trace_id, installed = done.stdout.splitlines()
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["trace"] for line in found] == [int(trace_id)] * 3
    assert all(line["installed"] == installed.split() for line in found)
