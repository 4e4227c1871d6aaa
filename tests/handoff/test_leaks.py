"""TRACEFILL_DEBUG=1: where the snapshots that are in use were acquired, in the program's own words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """\
import threading, queue
import tracefill
from tracefill.snapshots import leaks
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

tracefill.install(queues=True)
trace.set_tracer_provider(TracerProvider())
jobs, release = queue.Queue(), threading.Event()
with trace.get_tracer("shop").start_as_current_span("request"):
    jobs.put("never taken")                                             # line 11
    timer = threading.Timer(60, print)
    timer.start()                                                       # line 13
    kept = tracefill.bind(print)                                        # line 14
print(*sorted(leak.rpartition(":")[2] for leak in leaks()), {Path(leak.rpartition(":")[0]).name for leak in leaks()})
timer.cancel()
timer.join()
del kept, jobs
print(leaks())
""".replace("Path(", "__import__('pathlib').Path(")


def test_a_program_in_a_folder_of_our_name_sees_its_own_lines(tmp_path: Path) -> None:
    program = tmp_path / "tracefill" / "shop.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    environment = {**os.environ, "TRACEFILL_DEBUG": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["11 13 14 {'shop.py'}", "[]"]
