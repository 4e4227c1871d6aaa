"""Celery 5: a task continues the request that called it, through retries, chains and chords, with any broker and pool.

    send_mail.delay(order)      # `enqueue send_mail` under the current span, `run send_mail` below it in the worker

With contrib's CeleryInstrumentor on, its spans are the ones: here only what it misses is done. A worker belongs to nobody,
whatever its command line has opened; and a task that the caller does not know leaves nothing current behind.

>>> import celery, tracefill
>>> from opentelemetry.trace import get_current_span
>>> tracefill.install(only=["celery"])
>>> app = celery.Celery("shop", broker="memory://", backend="cache+memory://")
>>> app.conf.task_always_eager = True       # here; elsewhere a worker runs it
>>> @app.task(name="send_mail")
... def send_mail(order):
...     print(f"{get_current_span().get_span_context().trace_id:x}")
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     asked = send_mail.delay(17)
4bf92f3577b34da6a3ce929d0e0e4736
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.trace import get_current_span

from tracefill.context import current, scope
from tracefill.jobs.job_spans import Job, carried, enqueuing, in_nobodys_name, running, running_here
from tracefill.spans import SpanScope, Tracer, record
from tracefill.wrapping import Patches, contrib_active

__all__ = ["patch", "unpatch"]

LIBRARIES = ("celery",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.celery")
_SCOPE = "_tracefill_scope"


def _is_contribs() -> bool:
    return contrib_active("opentelemetry.instrumentation.celery", "CeleryInstrumentor")


def _send_task(original: Any) -> Any:
    def send_task(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if _is_contribs():
            return _left_as_it_was(original, self, name, *args, **kwargs)
        with enqueuing(_tracer, Job("celery", name)):
            return original(self, name, *args, **kwargs)

    return send_task


def _left_as_it_was(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Contrib neither ends nor detaches the span of a task that it cannot look up."""
    before = current()
    with scope(before):
        try:
            return call(*args, **kwargs)
        finally:
            if current() is not before:
                get_current_span().end()


def _published(headers: Any = None, routing_key: Any = None, **_: Any) -> None:
    if _is_contribs() or not isinstance(headers, dict):
        return
    headers.update(carried())
    if routing_key:
        get_current_span().set_attribute("messaging.destination.name", str(routing_key))


def _begin(task: Any = None, task_id: Any = None, **_: Any) -> None:
    if task is None or _is_contribs():
        return
    request = task.request
    delivery = request.delivery_info or {}
    job = Job(
        "celery", task.name, delivery.get("routing_key"), task_id, (request.retries or 0) + 1, _due_ms(request.eta)
    )
    started: SpanScope = running_here(_tracer, job) if request.is_eager else running(_tracer, job, vars(request))
    started.__enter__()
    setattr(request, _SCOPE, started)


def _due_ms(eta: Any) -> float | None:
    from celery.utils.time import maybe_iso8601

    try:
        due = maybe_iso8601(eta)
        return float(due.timestamp() * 1000) if due is not None else None
    except (TypeError, ValueError):
        return None


def _end(task: Any = None, **_: Any) -> None:
    started: SpanScope | None = vars(task.request).pop(_SCOPE, None) if task is not None else None
    if started is not None:
        started.__exit__(None, None, None)


def _failed(sender: Any = None, exception: Any = None, **_: Any) -> None:
    started: SpanScope | None = vars(sender.request).get(_SCOPE) if sender is not None else None
    if started is not None and exception is not None and not isinstance(exception, sender.throws):
        record(started.span, exception)


_RECEIVERS = {"before_task_publish": _published, "task_prerun": _begin, "task_postrun": _end, "task_failure": _failed}


def patch() -> None:
    from celery import Celery, beat, signals
    from celery.worker import WorkController

    _patches.wrap(Celery, "send_task", _send_task)
    _patches.wrap(WorkController, "start", in_nobodys_name)
    _patches.wrap(beat.Service, "start", in_nobodys_name)
    for name, receiver in _RECEIVERS.items():
        getattr(signals, name).connect(receiver, weak=False)


def unpatch() -> None:
    from celery import signals

    _patches.undo()
    for name, receiver in _RECEIVERS.items():
        getattr(signals, name).disconnect(receiver)
