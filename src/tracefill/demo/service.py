"""python -m tracefill.demo.service NAME: one process of the shop. Serves until its standard input ends, which it also does
when the demo dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from tracefill.demo import telemetry

STOP_SECONDS = 15


def main(name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the demo sees Ctrl-C, and ends us in order
    provider = telemetry.begin(name)
    from tracefill.demo.shop import SERVICES

    stop = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(stop,), daemon=True).start()
    SERVICES[name](stop)
    provider.shutdown()
    sys.stdout.flush()
    os._exit(0)  # whatever thread still waits for a broker has nothing to say any more


def _wait_for_the_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)  # something waits for a broker or a caller that has gone


if __name__ == "__main__":
    main(*sys.argv[1:])
