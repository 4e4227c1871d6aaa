"""The spans of jobs, and what a job carries to its worker.

| what | name | kind | parent |
|---|---|---|---|
| a job is put in a queue | `enqueue send_mail` | PRODUCER | the current span |
| a worker runs it | `run send_mail` | CONSUMER | the span that enqueued it |
| a scheduler runs what a request has asked for, once | `run send_mail` | INTERNAL | the span that asked for it |
| a scheduler runs something again and again | `run clean_up` | INTERNAL | none: a trace of its own each time, with a link to whoever scheduled it |

What a job brings replaces whatever is current in its worker: a worker may live under a span that a command line has opened.
A trace of last week is closed: the run of a job that is older than `correlation.link_after_s` (a day) starts a trace of its
own, with a link.

    from tracefill.jobs.job_spans import correlation

    correlation.link_after_s = 600      # None: however old, a child

| attribute | unit | what |
|---|---|---|
| `tracefill.job.name` | | the function or task |
| `tracefill.job.attempt` | 1, 2, ... | which attempt this is |
| `tracefill.job.delay_ms` | ms | how long it waited since it was due; since it was enqueued, when it was due at once |
| `tracefill.entry` | | true: it brought no context |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, get_current_span, set_span_in_context

from tracefill import tags
from tracefill.context import Scope, current, extract, inject, scope
from tracefill.spans import SpanScope, Tracer, link_to

__all__ = [
    "SENT",
    "Job",
    "by_nobody",
    "carried",
    "correlation",
    "enqueuing",
    "in_nobodys_name",
    "running",
    "running_here",
    "scheduled",
    "sent_ms",
]

#: Beside the trace headers of a job: when it was enqueued, in milliseconds since the epoch.
SENT = "tracefill-sent-ms"

_NOTHING = Context()


@dataclass(slots=True)
class Correlation:
    """How the run of a job hangs together with whoever enqueued it."""

    link_after_s: float | None = 86_400.0

    def is_old(self, sent_ms: float | None) -> bool:
        return self.link_after_s is not None and bool(sent_ms) and _now_ms() - (sent_ms or 0) > self.link_after_s * 1000


correlation = Correlation()


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job. `due_ms`: when it was to run, in milliseconds since the epoch; None: at once."""

    system: str
    name: str
    queue: str | None = None
    id: str | None = None
    attempt: int | None = None
    due_ms: float | None = None

    def attributes(self, operation: str) -> dict[str, Any]:
        found = {
            "messaging.system": self.system,
            "messaging.operation.name": operation,
            "messaging.operation.type": "send" if operation == "enqueue" else "process",
            "messaging.destination.name": self.queue,
            "messaging.message.id": self.id,
            "tracefill.job.name": self.name,
            "tracefill.job.attempt": self.attempt,
        }
        return {name: value for name, value in found.items() if value is not None}


def carried() -> dict[str, str]:
    """The trace headers of now for a job to carry, with the time and the business tags that a broker may see; empty where
    there is nothing to carry."""
    headers: dict[str, str] = {}
    if tags.declared():
        tags.inject(headers, current(), tags.BROKER)
    else:
        inject(headers)
    if headers:
        headers[SENT] = str(round(_now_ms()))
    return headers


def sent_ms(headers: Mapping[str, Any]) -> float | None:
    """When a job was enqueued, by what it carries; None when that does not say.

    >>> sent_ms({"tracefill-sent-ms": "1700000000000"})
    1700000000000.0
    """
    try:
        return float(headers[SENT])
    except (KeyError, TypeError, ValueError):
        return None


def enqueuing(tracer: Tracer, job: Job) -> SpanScope:
    """The scope in which a job is put in its queue; `carried()` inside of it names this span."""
    return tracer.scope(f"enqueue {job.name}", "producer", attributes=lambda: job.attributes("enqueue"))


def running(tracer: Tracer, job: Job, headers: Mapping[str, Any] | None, enqueued_ms: float | None = None) -> SpanScope:
    """The scope in which a worker runs a job that carries these headers. `enqueued_ms`: where they do not say it."""
    headers = headers if isinstance(headers, Mapping) else {}
    sent = sent_ms(headers) or enqueued_ms
    brought = extract(headers)
    if tags.declared():
        brought = tags.received(brought, headers, "")
    old = correlation.is_old(sent)

    def attributes() -> dict[str, Any]:
        found = job.attributes("run")
        waited_since = max(job.due_ms or 0, sent or 0)
        if waited_since:
            found["tracefill.job.delay_ms"] = max(0, round(_now_ms() - waited_since))
        if not get_current_span(brought).get_span_context().is_valid:
            found["tracefill.entry"] = True
        return found

    links = link_to(brought) if old else ()
    return tracer.scope(f"run {job.name}", "consumer", _without_span(brought) if old else brought, attributes, links)


def running_here(tracer: Tracer, job: Job) -> SpanScope:
    """The scope in which a job runs at once, in its caller's hands."""
    return tracer.scope(f"run {job.name}", "consumer", attributes=lambda: job.attributes("run"))


def scheduled(tracer: Tracer, job: Job, by: Context | None, *, again: bool, asked_ms: float | None = None) -> SpanScope:
    """The scope in which a scheduler of this process runs what was asked for in the context `by`. `again`: this is not the
    only run, so it is nobody's child."""
    by = by if by is not None else _NOTHING
    apart = again or correlation.is_old(asked_ms)

    def attributes() -> dict[str, Any]:
        found = {name: value for name, value in job.attributes("run").items() if name.startswith("tracefill.")}
        if job.due_ms:
            found["tracefill.job.delay_ms"] = max(0, round(_now_ms() - job.due_ms))
        return found

    links = link_to(by) if apart else ()
    return tracer.scope(f"run {job.name}", "internal", _without_span(by) if apart else by, attributes, links)


def _without_span(context: Context) -> Context:
    """Baggage and the like are the job's, whoever its parent is."""
    if not get_current_span(context).get_span_context().is_valid:
        return context
    return set_span_in_context(INVALID_SPAN, context)


def by_nobody() -> Scope:
    """The scope in which a worker or a scheduler is started, and waits: no request's, and no command line's."""
    return scope(_NOTHING)


def in_nobodys_name(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a library that starts or is a worker, run by nobody."""

    def start(*args: Any, **kwargs: Any) -> Any:
        with by_nobody():
            return original(*args, **kwargs)

    return start


def _now_ms() -> float:
    return time.time() * 1000
