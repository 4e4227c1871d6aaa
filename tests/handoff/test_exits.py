"""Nothing that ended is lost when a process leaves: real processes, a BatchSpanProcessor that would wait an hour, a file."""

from __future__ import annotations

import json
import multiprocessing.process
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import PatchContract
from tracefill.handoff import exits

SET_UP = """
import os, signal, sys, time, threading, multiprocessing
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import tracefill

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(os.environ["SPANS"]), schedule_delay_millis=3_600_000))
trace.set_tracer_provider(provider)
if os.environ.get("TRACEFILL", "1") == "1":
    tracefill.install(only=["exits", "processes"])
tracer = trace.get_tracer("tests")

def work(name="far"):
    with tracer.start_as_current_span(name):
        pass
"""


class Left:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spans(self) -> list[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return sorted(
            span["name"]
            for line in lines
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        )


Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path / "spans.jsonl")


@pytest.fixture
def program(left: Left, tmp_path: Path) -> Any:
    """Starts a program of these lines, and waits until it prints "ready"."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, *arguments: str, ready: bool = True, **environment: str) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(SET_UP + textwrap.dedent(body))
        command = arguments or (sys.executable, "program.py")
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "SPANS": str(left.path), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if ready:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


WAITS = """
    work()
    print("ready", flush=True)
    time.sleep(60)
"""


class TestPatch(PatchContract):
    name = "exits"

    def owners(self) -> list[Any]:
        return [os, signal, multiprocessing.process.BaseProcess]

    def test_sigterm_is_given_back(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        tracefill.install(only=["exits"])
        tracefill.uninstall()
        assert signal.getsignal(signal.SIGTERM) is before


def test_without_it_the_span_of_a_terminated_process_is_lost(program: Program, left: Left) -> None:
    process = program(WAITS, TRACEFILL="0")
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == []


def test_sigterm_by_default_flushes_and_still_kills(program: Program, left: Left) -> None:
    process = program(WAITS)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == ["far"]


def test_os_exit_in_a_forked_child_flushes_what_the_child_ended(program: Program, left: Left) -> None:
    process = program(
        """
        work("parent")
        child = os.fork()
        if not child:
            work("child")
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        os._exit(0)
        """,
        ready=False,
    )
    assert process.wait(30) == 0
    assert left.spans == ["child", "parent"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_leave_nothing_behind(program: Program, left: Left, method: str) -> None:
    process = program(
        f"""
        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            child = context.Process(target=work)
            child.start()
            child.join()
            with context.Pool(1) as pool:
                pool.apply(work, ("of pool",))
            daemon = context.Process(target=time.sleep, args=(60,), daemon=True)
            daemon.start()
        """,
        ready=False,
    )
    assert process.wait(60) == 0
    assert left.spans == ["far", "of pool"]


def test_a_handler_of_the_users_stays_alone(program: Program, left: Left) -> None:
    process = program(
        """
        def stop(number, frame):
            work("in the handler")
            sys.exit(3)
        signal.signal(signal.SIGTERM, stop)
        tracefill.uninstall()
        tracefill.install(only=["exits"])
        assert signal.getsignal(signal.SIGTERM) is stop
        work()
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    process.terminate()
    assert process.wait(30) == 3
    assert left.spans == ["far", "in the handler"]


def test_a_handler_that_raises_the_signal_again_flushes(program: Program, left: Left) -> None:
    process = program(
        """
        def stop(number, frame):
            work("in the handler")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, stop)
        work()
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == ["far", "in the handler"]


def test_a_handler_put_on_top_finds_the_default_below_it(program: Program, left: Left) -> None:
    process = program(
        """
        below = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda number, frame: (work("on top"), below(number, frame)))
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == ["on top"]


def test_another_program_takes_over(program: Program, left: Left) -> None:
    process = program('work()\nos.execlp(sys.executable, sys.executable, "-c", "raise SystemExit(4)")', ready=False)
    assert process.wait(30) == 4
    assert left.spans == ["far"]


STUCK = """
    import opentelemetry.sdk.trace.export

    class Stuck(opentelemetry.sdk.trace.export.SpanExporter):
        def export(self, spans):
            time.sleep(120)

    provider.add_span_processor(BatchSpanProcessor(Stuck(), schedule_delay_millis=3_600_000))
"""


@pytest.mark.parametrize(
    ("last", "code"), [("os._exit(5)", 5), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)]
)
def test_an_exporter_that_hangs_is_waited_for_no_longer_than_the_bound(
    program: Program, left: Left, last: str, code: int
) -> None:
    started = time.monotonic()
    process = program(f"{STUCK}\n    work()\n    {last}", ready=False, TRACEFILL_FLUSH_TIMEOUT_MS="200")
    assert process.wait(60) == code
    assert time.monotonic() - started < 60
    assert left.spans == ["far"]


def test_a_second_sigterm_does_not_wait(program: Program) -> None:
    process = program(STUCK + WAITS, TRACEFILL_FLUSH_TIMEOUT_MS="100000")
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_main_thread_interrupted_under_the_locks_of_threading(program: Program, left: Left) -> None:
    process = program(
        """
        work()
        with threading._active_limbo_lock:
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == ["far"]


def test_terminated_while_it_leaves_by_itself(program: Program, left: Left) -> None:
    process = program(
        """
        import opentelemetry.sdk.trace.export

        class Slow(opentelemetry.sdk.trace.export.SpanExporter):
            def export(self, spans):
                print("ready", flush=True)
                time.sleep(1)

        provider._active_span_processor._span_processors = (
            BatchSpanProcessor(Slow(), schedule_delay_millis=3_600_000), *provider._active_span_processor._span_processors
        )
        work()
        os._exit(6)
        """
    )
    process.terminate()
    assert process.wait(30) == 6
    assert left.spans == ["far"]


def test_uvicorn(program: Program, left: Left, tmp_path: Path) -> None:
    process = program(
        """
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                return
            work()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
        """,
        *(sys.executable, "-m", "uvicorn", "program:app", "--port", "0", "--log-config", str(_log_to_stdout(tmp_path))),
        ready=False,
    )
    assert process.stdout is not None
    port = next(line.rsplit(":", 1)[1].split()[0] for line in process.stdout if "running on" in line)
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").read() == b"done"
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert left.spans == ["far"]


def _log_to_stdout(folder: Path) -> Path:
    handlers = {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}
    root = {"handlers": ["out"], "level": "INFO"}
    config = {"version": 1, "disable_existing_loggers": False, "handlers": handlers, "root": root}
    path = folder / "log.json"
    path.write_text(json.dumps(config))
    return path


def test_grpc_server(program: Program, left: Left) -> None:
    process = program(
        """
        import grpc
        from concurrent.futures import ThreadPoolExecutor

        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(lambda request, context: work() or b"done")

        server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert channel.unary_unary("/any/method")(b"") == b"done"
        print("ready", flush=True)
        server.wait_for_termination()
        """
    )
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert left.spans == ["far"]


def test_spans_reach_a_collector_by_otlp(program: Program) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        process = program(
            """
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=3_600_000))
            for number in range(3):
                child = os.fork()
                if not child:
                    work(f"child {number}")
                    os._exit(0)
                os.waitpid(child, 0)
            work("parent")
            os._exit(0)
            """,
            ready=False,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )
        assert process.wait(60) == 0
        collector.shutdown()
        thread.join()
    assert [name for body in received for name in (b"child 0", b"child 1", b"child 2", b"parent") if name in body] == [
        b"child 0",
        b"child 1",
        b"child 2",
        b"parent",
    ]


def test_flush_says_whether_all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Slow:
        def force_flush(self) -> None:
            release.wait(30)

    monkeypatch.setattr(trace, "get_tracer_provider", Slow)
    assert not exits.flush(0.01)
    release.set()
    assert exits.flush(30)


def test_install_in_another_thread_leaves_sigterm_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(tracefill.install, only=["exits"]).result()
    assert signal.getsignal(signal.SIGTERM) is before
    tracefill.uninstall()


SHUTS_DOWN = """
    export = FileSpanExporter.export

    def slowly(self, spans):
        print("ready", flush=True)
        time.sleep({seconds})
        return export(self, spans)

    FileSpanExporter.export = slowly
    work()
    {body}
"""


@pytest.mark.parametrize("body", ["", "provider.shutdown(); time.sleep(60)"], ids=["at the end", "in the middle"])
def test_a_sigterm_while_the_provider_is_shut_down_loses_nothing(program: Program, left: Left, body: str) -> None:
    process = program(SHUTS_DOWN.format(seconds=0.3, body=body))
    time.sleep(0.05)
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGTERM) if not body else process.wait(30) == -signal.SIGTERM
    assert left.spans == ["far"]


def test_a_shutdown_that_takes_too_long_is_not_waited_for(program: Program) -> None:
    process = program(SHUTS_DOWN.format(seconds=60, body=""), TRACEFILL_FLUSH_TIMEOUT_MS="300")
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_a_second_sigterm_hurries_a_shutdown(program: Program) -> None:
    process = program(SHUTS_DOWN.format(seconds=60, body=""), TRACEFILL_FLUSH_TIMEOUT_MS="60000")
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:  # one that comes while another is pending is none
        process.terminate()
        time.sleep(0.2)
    assert process.poll() == -signal.SIGTERM
