"""Every row of the benchmarks still gives the right answer on both sides; what it takes is for `make bench` to say."""

from __future__ import annotations

import json
import subprocess
import sys


def test_every_row_is_right_before_it_is_timed() -> None:
    # In an interpreter of its own: the rows put a TracerProvider in force and leave a span current.
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for name in (
        "extract, dict of 15",
        "hand-off",
        "ASGI request",
        "WSGI request",
        "Kafka send",
        "statement",
        "ddtrace",
    ):
        assert any(name in row for row in rows), done.stderr
    assert all(row["ours_ns"] > 0 for row in rows.values())
