"""Hand-offs: what binding a job to the context of now and running it costs, beside contrib's threading instrumentation.

The pool and the thread run their jobs at once, where they are: a real one takes tens of microseconds to wake up, which would be
all that is seen. What they take for themselves is subtracted from both sides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import context, trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from wrapt import wrap_function_wrapper

import tracefill
from benchmarks.timing import Case
from tracefill.handoff import threads
from tracefill.wrapping import Patches


class Pool:
    """An executor whose worker is the caller."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)


class Thread(threading.Thread):
    """Runs when it is started, in the thread that starts it, and as often as that."""

    job: Callable[[], Any] = staticmethod(lambda: None)

    def start(self) -> None:
        self.run()

    def run(self) -> None:
        self.job()


def span_id() -> int:
    return trace.get_current_span().get_span_context().span_id


def nothing() -> None:
    """A job that takes no time."""


def with_contrib(kind: type) -> Any:
    wrappers = vars(ThreadingInstrumentor)
    made = type(kind.__name__, (kind,), dict(vars(kind)))
    named = {"submit": "__wrap_thread_pool_submit", "start": "__wrap_threading_start", "run": "__wrap_threading_run"}
    for name, wrapper in named.items():
        if name in vars(kind):
            wrap_function_wrapper(made, name, wrappers[f"_ThreadingInstrumentor{wrapper}"].__func__)
    return made()


def with_tracefill(kind: type) -> Any:
    made: Any = type(kind.__name__, (kind,), dict(vars(kind)))
    patches = Patches()
    for name, make in (("submit", threads._submit), ("start", threads._start)):
        if name in vars(kind):
            patches.wrap(made, name, make)
    return made()


def seen_by(thread: Any) -> int:
    """The span that is current for the thread's job."""
    seen: list[int] = []
    thread.job = lambda: seen.append(span_id())
    thread.start()
    del thread.job
    return seen[0]


def bound_elsewhere(job: Callable[[], Any]) -> Any:
    """What the job returns, bound here and called where no span is current."""
    bound = tracefill.bind(job)
    with tracefill.context.scope(context.Context()):
        return bound()


def cases() -> list[Case]:
    if not span_id():
        context.attach(trace.set_span_in_context(TracerProvider().get_tracer("bench").start_span("request")))
    contrib_pool, our_pool, plain_pool = with_contrib(Pool), with_tracefill(Pool), Pool()
    contrib_thread, our_thread, plain_thread = with_contrib(Thread), with_tracefill(Thread), Thread()
    return [
        Case(
            "hand-off: bind by hand, then submit", "contrib.submit(job)", "plain.submit(bind(job))",
            {"contrib": contrib_pool, "bind": tracefill.bind, "plain": plain_pool, "job": nothing},
            lambda *_: bound_elsewhere(span_id) == span_id() != 0, 4, added="plain.submit(job)",
        ),
        Case(
            "hand-off: submit to an executor", "contrib.submit(job)", "ours.submit(job)",
            {"contrib": contrib_pool, "ours": our_pool, "plain": plain_pool, "job": nothing},
            lambda *_: contrib_pool.submit(span_id) == our_pool.submit(span_id) == span_id() != 0, 4, added="plain.submit(job)",
        ),
        Case(
            "hand-off: start a thread", "contrib.start()", "ours.start()",
            {"contrib": contrib_thread, "ours": our_thread, "plain": plain_thread},
            lambda *_: seen_by(contrib_thread) == seen_by(our_thread) == span_id() != 0, 0, added="plain.start()",
        ),
    ]  # fmt: skip
