"""Jobs that count themselves, so that a boundary program can wait for them."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry import trace

from tests.boundaries import Program


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Done:
    """Counts what has run."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self.runs = 0

    def __call__(self) -> None:
        self.runs = next(self._count)

    def wait(self, runs: int = 1) -> None:
        until(lambda: self.runs >= runs)


program = Program()
done = Done()


def far(key: str = "") -> None:
    program.far(key)
    done()


def check() -> None:
    """A job that no request has asked for: it may be a part of none."""
    trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    spans = map(json.loads, Path(os.environ["BOUNDARY_OUT"]).read_text().splitlines())
    if any(span.get("trace") == trace_id and span["scope"] == "boundary" for span in spans):
        program.leak("a job that no request has asked for")
    done()
