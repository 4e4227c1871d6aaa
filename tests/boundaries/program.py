"""What a boundary program sees: `b.near()`, `b.far()`, and the settings it runs under. Runs inside the fresh interpreter."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

BOUNDARIES: dict[str, Boundary] = {}


class Boundary:
    def __init__(
        self,
        name: str,
        function: Callable[[Program], Any],
        expect: str,
        needs: Sequence[str],
        statements: Mapping[str, int] | None,
    ) -> None:
        self.name = name
        self.function = function
        self.expect = expect
        self.needs = tuple(needs)
        self.statements = statements


def boundary(
    name: str, *, expect: str = "connected", needs: Sequence[str] = (), statements: Mapping[str, int] | None = None
) -> Callable[[Any], Any]:
    """Registers a program. expect: "connected" (every `far` hangs somewhere below its `near`), "direct" (right below it),
    "later" (connected, and nobody waits for it: the request that asked for it may be over when it begins), "own root" (every `far` is a root), "linked". needs: server fixtures whose address the program finds in `b.address(name)`.
    statements: how many statements of a database are to be seen below the `near` of each key; then no `far` is asked for."""

    def register(function: Any) -> Any:
        BOUNDARIES[function.__name__] = Boundary(name, function, expect, needs, statements)
        return function

    return register


class Program:
    """Handed to a boundary program. `near(key)` and `far(key)` of one key belong together."""

    tracer = trace.get_tracer("boundary")

    @contextlib.contextmanager
    def near(self, key: str = "") -> Iterator[Any]:
        with self.tracer.start_as_current_span(f"near{key}") as span:
            yield span
            if trace.get_current_span() is not span:
                self.leak("inside near")
        self.clean("after near")

    def far(self, key: str = "", *_: Any, **__: Any) -> None:
        """The work on the far side: one span."""
        with self.tracer.start_as_current_span(f"far{key}" if isinstance(key, str) else "far"):
            pass

    def span(self, name: str) -> Any:
        return self.tracer.start_as_current_span(name)

    def clean(self, where: str) -> None:
        """Call where no span may be current."""
        if trace.get_current_span().get_span_context().is_valid:
            self.leak(where)

    def leak(self, where: str) -> None:
        write({"leak": where})

    def address(self, server: str) -> str:
        return os.environ[f"BOUNDARY_{server.upper()}"]


def write(record: dict[str, Any]) -> None:
    """One line, in one write: processes and threads append to the same file."""
    with open(os.environ["BOUNDARY_OUT"], "ab", buffering=0) as out:
        out.write(json.dumps(record).encode() + b"\n")


class _Exporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            write(
                {
                    "name": span.name,
                    "trace": f"{span.context.trace_id:032x}",
                    "span": f"{span.context.span_id:016x}",
                    "parent": f"{span.parent.span_id:016x}" if span.parent else None,
                    "remote": bool(span.parent and span.parent.is_remote),
                    "kind": span.kind.name,
                    "links": [f"{link.context.span_id:016x}" for link in span.links],
                    "start": span.start_time,
                    "end": span.end_time,
                    "scope": span.instrumentation_scope.name if span.instrumentation_scope else "",
                    "attributes": {
                        k: v if isinstance(v, (str, int, float, bool)) else list(v)
                        for k, v in (span.attributes or {}).items()
                    },
                    "pid": os.getpid(),
                    "thread": threading.get_native_id(),
                }
            )
        return SpanExportResult.SUCCESS


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.name.startswith(("opentelemetry", "tracefill")):
            write({"log": f"{record.name}: {record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"})


def set_up(contrib: Sequence[str]) -> None:
    """The SDK, and what the mode asks for. Contrib instrumentors are named `module:Class`."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_Exporter()))
    trace.set_tracer_provider(provider)
    logging.getLogger().addHandler(_Log())
    for part in os.environ["BOUNDARY_MODE"].split("+"):
        if part == "contrib":
            for name in contrib:
                module, _, kind = name.partition(":")
                getattr(importlib.import_module(module), kind)().instrument()
        elif part == "tracefill":
            import tracefill

            tracefill.install(queues=True, subprocess=True)


def load(path: str) -> Any:
    """The boundary file as a module (its folder is a package: workers that are spawned import it again by name)."""
    name = os.path.relpath(path).removesuffix(".py").replace(os.sep, ".")
    return importlib.import_module(name)


if "BOUNDARY_MODE" in os.environ and not getattr(sys, "_boundary_is_set_up", False):
    # At import, so that spawned workers are set up the way the main process is, as a user's own settings module would be.
    sys._boundary_is_set_up = True  # type: ignore[attr-defined]
    set_up(os.environ.get("BOUNDARY_CONTRIB", "").split())
