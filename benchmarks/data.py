"""The rows of the data layer: what a statement costs more than without, by contrib's dbapi instrumentation and by tracefill."""

from __future__ import annotations

import contextvars
import sqlite3
from collections.abc import Callable
from typing import Any

from opentelemetry import context, trace
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from benchmarks.sdk import ended_spans, provider
from benchmarks.timing import Case
from tracefill.data import dbapi, statements
from tracefill.data import sqlite3 as integration
from tracefill.spans import Tracer

SQL = "select 17 where 1 = ?"


class Cursor(sqlite3.Cursor):
    """As install() makes sqlite3's own, beside which contrib's could not be timed."""

    execute = statements.traced(Tracer(integration._tracer.name), "sqlite")(sqlite3.Cursor.execute)


def below(span: Any) -> contextvars.Context:
    """A context of Python's in which this span is current."""
    made = contextvars.copy_context()
    made.run(lambda: context.attach(trace.set_span_in_context(span, context.Context())))
    return made


def case(name: str, inside: contextvars.Context, ours: Callable[..., Any], spans: int, least: float) -> Case:
    plain = sqlite3.connect(":memory:").cursor()
    theirs = SQLite3Instrumentor().instrument_connection(sqlite3.connect(":memory:"), provider()).cursor()

    def right(_: Any, __: Any) -> bool:
        """Both return the row, and make as many spans as they should."""
        for execute in (theirs.execute, ours):
            with ended_spans() as ended:
                rows = inside.run(execute, SQL, (1,)).fetchall()
            if rows != [(17,)] or len(ended) != spans:
                return False
        return True

    names = {
        "inside": inside.run,
        "theirs": theirs.execute,
        "ours": ours,
        "plain": plain.execute,
        "sql": SQL,
        "one": (1,),
    }
    return Case(
        name, "inside(theirs, sql, one)", "inside(ours, sql, one)", names, right, least, added="inside(plain, sql, one)"
    )  # fmt: skip


def cases() -> list[Case]:
    sampled = below(provider().get_tracer("bench").start_span("near"))
    denied = below(NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(0))))
    patched = sqlite3.connect(":memory:").cursor(Cursor)
    traced = dbapi.trace(sqlite3.connect(":memory:")).cursor()
    return [
        case("added to a statement, sampled", sampled, patched.execute, 1, 1.05),
        case("added to a statement, unsampled", denied, patched.execute, 0, 5),
        case("added to a statement by dbapi.trace, sampled", sampled, traced.execute, 1, 1),
    ]
