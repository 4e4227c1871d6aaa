"""python -m tracefill.demo.keeper PORT COMMAND...: a server that knows nothing of the demo, kept for as long as the demo lives.

Prints that it is ready when the server takes connections, and ends it when its own standard input ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

STOP_SECONDS = 10


def main(port: str, *command: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    over = threading.Event()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
        while server.poll() is None and not over.is_set() and not _answers(int(port)):
            time.sleep(0.05)
        if server.poll() is None:
            print("ready", flush=True)  # which fails when the demo has died meanwhile
            over.wait()
    finally:
        _stop(server)


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)  # ourselves with it


if __name__ == "__main__":
    main(*sys.argv[1:])
