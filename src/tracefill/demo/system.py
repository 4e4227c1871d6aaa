"""All processes of one run of the shop: started in order, watched, stopped, none left behind."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from tracefill.demo import shop

START_SECONDS = 30
STOP_SECONDS = 10


class CannotStart(Exception):
    """A process of the shop did not come up; the message ends with what it printed."""


class System:
    """The shop in one mode; a context manager. `gateway` is its address, `database` the file of the warehouse."""

    def __init__(self, mode: str, folder: Path) -> None:
        self._mode = mode
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self.database = folder / "shop.sqlite"
        self.gateway = f"http://127.0.0.1:{_free_port()}"

    def __enter__(self) -> System:
        shop.create_tables(str(self.database))
        environment = {
            **os.environ,
            "SHOP_DATABASE": str(self.database),
            "SHOP_GATEWAY": self.gateway,
            "SHOP_ORDERS": f"http://127.0.0.1:{_free_port()}",
        }
        for name in (
            "OTEL_PROPAGATORS",
            "OTEL_PYTHON_CONTEXT",
            "OTEL_TRACES_SAMPLER",
            "TRACEPARENT",
            "TRACESTATE",
            "BAGGAGE",
        ):
            environment.pop(name, None)
        if self._mode == "tracefill":
            environment |= {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"}
        try:
            environment |= self._broker(environment)
            for name in shop.SERVICES:
                spans = str(self._folder / f"{name}.jsonl")
                self._start(
                    [sys.executable, "-m", "tracefill.demo.service", name, self._mode, spans], name, environment
                )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # In the order of the work: who still has something to hand on ends before the one that receives it.
        for process in reversed(self._processes):
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _broker(self, environment: dict[str, str]) -> dict[str, str]:
        address = os.environ.get("TRACEFILL_KAFKA")
        if address:
            return {"SHOP_KAFKA": address}
        line = self._start([sys.executable, "-m", "tracefill.demo.broker"], "broker", environment)
        return {"SHOP_KAFKA": line.removeprefix("ready "), "SHOP_KAFKA_IS_MOCK": "1"}

    def _start(self, command: list[str], name: str, environment: dict[str, str]) -> str:
        """Starts a process and waits for its line that begins with "ready"."""
        log = self._folder / f"{name}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=START_SECONDS)
            except queue.Empty:
                line = ""
            if line.startswith("ready"):
                return line
            if not line:
                raise CannotStart(f"the {name} of the demo did not start:\n{log.read_text()[-2000:]}")


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.strip() or " ")
    lines.put("")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
