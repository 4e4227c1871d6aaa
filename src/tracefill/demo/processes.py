"""Processes of the demo: started, waited for, stopped in order, none left behind.

Each serves until its standard input ends, so that it also ends when the demo is killed.
"""

from __future__ import annotations

import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

START_SECONDS = 60
STOP_SECONDS = 20

# Below the range that outgoing connections take their ports from.
PORTS = range(20_000, 32_000)


class CannotStart(Exception):
    """A process of the demo did not come up; the message ends with what it printed."""


class Processes:
    """A context manager, at whose end they are stopped, the last one first; their logs are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[str]] = []
        self._lines: dict[str, queue.Queue[str]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # In the order of the work: who still has something to hand on ends before the one that receives it.
        while self._running:
            _stop(self._running.pop())

    def start(self, name: str, module: str, *arguments: str, environment: dict[str, str]) -> None:
        """Starts a module of the demo as a process."""
        with (self._folder / f"{name}.log").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", f"tracefill.demo.{module}", *arguments],
                env={**_of_our_own(), **environment},
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._running.append(process)
        self._lines[name] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, self._lines[name]), daemon=True).start()

    def wait(self, name: str) -> str:
        """Waits for the line that begins with "ready", and gives what it says behind that. Raises CannotStart."""
        while True:
            try:
                line = self._lines[name].get(timeout=START_SECONDS)
            except queue.Empty:
                line = ""
            if line.startswith("ready"):
                return line.removeprefix("ready").strip()
            if not line:
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                raise CannotStart(f"the {name} of the demo did not start:\n{log[-2000:]}")


def _of_our_own() -> dict[str, str]:
    """Our environment, without what would change how the shop traces."""
    changing = ("OTEL_", "TRACEPARENT", "TRACESTATE", "BAGGAGE")
    return {name: value for name, value in os.environ.items() if not name.startswith(changing)}


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.strip() or " ")
    lines.put("")


def program(name: str) -> Path:
    """A server's program. Raises CannotStart where it is not on the PATH."""
    found = shutil.which(name)
    if found is None:
        raise CannotStart(f"{name} is not on the PATH")
    return Path(found)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; random, so that demos side by side do not choose the same."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
