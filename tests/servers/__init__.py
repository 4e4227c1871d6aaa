"""The real servers of the tests: each on 127.0.0.1, a port and a folder of its own, stopped by its own pid.

One module a server, all of one shape: `available()` is None when it can be started here, else the reason in words;
`start(folder)` gives it running. What has to be downloaded or built first has a `build()` too. The fixtures of
`tests/conftest.py` start each server once a run; `python -m tests.servers install | jaeger | check` prepares them.

A server that the environment names wins over starting one: TRACEFILL_KAFKA, TRACEFILL_RABBITMQ, TRACEFILL_POSTGRES,
TRACEFILL_MYSQL, TRACEFILL_REDIS, TRACEFILL_JAEGER, each `host:port` or a URL with user, password and database.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

NAMES = ("kafka", "rabbitmq", "postgres", "mariadb", "redis", "nginx", "jaeger", "peers.go", "peers.java")

# Debian keeps some servers off the PATH; its `rabbitmq-server` on the PATH is a wrapper that changes the user.
FOLDERS_OF_PROGRAMS = [
    "/usr/lib/rabbitmq/bin",
    *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True),
    "/usr/sbin",
]

# Below the range that outgoing connections take their ports from: a client that keeps knocking at a stopped
# server's port would now and then be given that very port, and be connected to itself.
SERVER_PORTS = range(20_000, 32_000)

START_DEADLINE_S = 120
STOP_DEADLINE_S = 30
LOG_TAIL_LINES = 30


class NotHere(unittest.SkipTest):
    """A server that cannot do here what the test asks; pytest shows the test as skipped."""


class DidNotStart(RuntimeError):
    """A server that should have started; the message ends with the tail of its log."""


class Server:
    """A server that answers at `url`: started by us in `folder`, or somebody else's when there is no folder.

    `stop` and `start` keep the folder and the port, so what the server stores on disk is there again.
    """

    name: str
    url_format = "{port}"
    user_for_root: str | None = None  # the account to run as when we are root and the server refuses root
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path | None, url: str | None = None) -> None:
        self.folder = folder or Path()
        self.ours = folder is not None
        self.url = url or self.url_format.format(port=free_port())
        self._processes: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> None:
        """Write what the server needs in its folder before its first start."""

    def command(self) -> list[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def address(self) -> str:
        """The server as `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def username(self) -> str:
        return unquote(urlsplit(self.url).username or "")

    @property
    def password(self) -> str:
        return unquote(urlsplit(self.url).password or "")

    @property
    def database(self) -> str:
        return unquote(urlsplit(self.url).path.lstrip("/"))

    def start(self) -> None:
        """Start the server and wait until it answers; raises DidNotStart with the tail of its log."""
        self._must_be_ours()
        self._spawn(self.command())
        self._wait_until(self.answers)

    def stop(self) -> None:
        """Stop the server and wait until it has gone; one that has stopped already, or is not ours, is left alone."""
        while self._processes:
            stop(self._processes.pop(), self.stop_signal)

    def restart(self) -> None:
        """Stop and start again, on the same folder and port; raises NotHere when the server is not ours."""
        self.stop()
        self.start()

    def run(self, *command: str | Path) -> None:
        """Run a tool of the server to its end, as the server's user, into the server's log; raises DidNotStart."""
        self._spawn(command)
        if self._processes[-1].wait(START_DEADLINE_S) != 0:
            raise self._did_not_start()
        self._processes.pop()

    def _must_be_ours(self) -> None:
        if not self.ours:
            raise NotHere(f"the {self.name} of the environment ({self.url}) is not ours to stop or start")

    def _spawn(self, command: Sequence[str | Path]) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for pytest, which then stops us in good order
                preexec_fn=functools.partial(die_with_parent, self.stop_signal),
                **self._as_user(),
            )
        self._processes.append(process)

    def _as_user(self) -> dict[str, Any]:
        user = self.user_for_root
        if user is None or os.geteuid() != 0:
            return {}
        shutil.chown(self.folder, user)
        return {"user": user, "group": user, "extra_groups": []}

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not ready():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                self.stop()
                raise self._did_not_start()
            time.sleep(0.02)

    def _did_not_start(self) -> DidNotStart:
        tail = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return DidNotStart("\n".join([f"{self.name} did not start; the end of its log:", *tail]))

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"


S = TypeVar("S", bound=Server)


def module(name: str) -> ModuleType:
    """The module of a server, by its name in NAMES."""
    return importlib.import_module(f"{__name__}.{name}")


def given(name: str) -> str | None:
    """The address of a server that the environment names, as a URL; None when it names none."""
    server = module(name)
    address = os.environ.get(getattr(server, "VARIABLE", ""))
    if not address:
        return None
    return address if "://" in address else f"{server.SCHEME}://{address}"


def available(name: str) -> str | None:
    """None when tests can have the server `name` (of NAMES) here, else the reason in words."""
    return None if given(name) else module(name).available()


@contextlib.contextmanager
def running(name: str) -> Iterator[Any]:
    """The server `name` (of NAMES), the environment's if it names one, else ours, stopped and cleared away at the end.

    Raises NotHere when it cannot be started here, DidNotStart when it should have started.
    """
    if reason := available(name):
        raise NotHere(reason)
    if url := given(name):
        yield module(name).SERVER(None, url)
        return
    # Beside pytest's own temporary folders, which other users (postgres, mysql) may not enter.
    with tempfile.TemporaryDirectory(prefix=f"tracefill-{name}-", ignore_cleanup_errors=True) as folder:
        server = module(name).start(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def started(server: S) -> S:
    """The new server, prepared and started; nothing of it is left running when that fails."""
    try:
        server.prepare()
        server.start()
    except BaseException:
        server.stop()
        raise
    return server


def stop(process: subprocess.Popen[bytes], by: signal.Signals = signal.SIGTERM) -> None:
    """End a process that we started and wait until it has gone, with its whole group when it does not listen."""
    process.send_signal(by)
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals) -> None:
    """Have the kernel stop this process when pytest dies, even of a signal that leaves it no time to clean up.

    The kernel looks at the thread, not the process, that started it: servers are to be started by the main thread.
    """
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, int(by))


def program(name: str) -> str | None:
    """The path of an installed program, None when there is none."""
    return shutil.which(name, path=os.pathsep.join([*FOLDERS_OF_PROGRAMS, os.environ.get("PATH", "")]))


def missing(*programs: str) -> str | None:
    """Which of the programs are not installed, in words; None when all are."""
    absent = [name for name in programs if program(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; random, so that runs side by side do not choose the same."""
    while True:
        port = random.choice(SERVER_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def ask(port: int, question: bytes = b"") -> bytes:
    """The first bytes that a server on 127.0.0.1 says to the question; empty while it does not answer."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(question)
        return connection.recv(4096)
    return b""
