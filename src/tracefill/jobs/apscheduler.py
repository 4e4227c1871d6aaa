"""APScheduler 3: a job that is to run once continues the request that added it; one that runs again and again starts a trace
of its own each time, with a link to whoever added it.

    scheduler.add_job(send_mail, args=[order])              # in a request: its span is the parent of `run send_mail`
    scheduler.add_job(clean_up, "interval", minutes=5)      # each run a root

The scheduler itself belongs to nobody, also where it is started in a request. A job keeps its origin in job stores that
pickle it, and in the workers of a ProcessPoolExecutor (those are spawned: by install() as a whole, or with "processes" in `only`).

>>> import time, tracefill
>>> from apscheduler.schedulers.background import BackgroundScheduler
>>> from opentelemetry.trace import get_current_span
>>> tracefill.install(only=["apscheduler"])
>>> scheduler, seen = BackgroundScheduler(), []
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     job = scheduler.add_job(lambda: seen.append(get_current_span().get_span_context().trace_id))
>>> scheduler.start()
>>> while not seen:
...     time.sleep(0.01)
>>> print(f"{seen[0]:x}")
4bf92f3577b34da6a3ce929d0e0e4736
>>> scheduler.shutdown()
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from tracefill.context import extract, scope
from tracefill.jobs.job_spans import SENT, Job, carried, in_nobodys_name, scheduled, sent_ms
from tracefill.jobs.origins import Origin, Origins, origin
from tracefill.snapshots import snapshot
from tracefill.spans import SpanScope, Tracer, record
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("apscheduler",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.apscheduler")
_origins = Origins()


def _modify(original: Any) -> Any:
    def _modify(self: Any, **changes: Any) -> Any:
        if "trigger" in changes:  # it is added, or rescheduled
            _origins[self] = origin()
        return original(self, **changes)

    return _modify


def _getstate(original: Any) -> Any:
    def __getstate__(self: Any) -> dict[str, Any]:
        state: dict[str, Any] = original(self)
        asked = _origins.get(self)
        if asked is not None and asked.context is not None:
            with scope(asked.context):
                state["tracefill"] = carried() | {SENT: str(round(asked.asked_ms))}
        return state

    return __getstate__


def _setstate(original: Any) -> Any:
    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        original(self, state)
        headers = state.get("tracefill")
        if isinstance(headers, dict):
            _origins[self] = Origin(snapshot(extract(headers)), sent_ms(headers) or 0)

    return __setstate__


# --------------------------------------------------------------------------------------------------------------- running


def _run(job: Any, run_time: Any) -> SpanScope:
    asked = _origins.get(job)
    again = _runs_again(job.trigger)
    run = scheduled(
        _tracer,
        Job("apscheduler", job.func_ref or job.name, id=job.id, due_ms=run_time.timestamp() * 1000),
        asked.context if asked is not None else None,
        again=again,
        asked_ms=asked.asked_ms if asked is not None else None,
    )
    if not again:
        _origins.forget(job, asked)
    return run


def _runs_again(trigger: Any) -> bool:
    parts = getattr(trigger, "triggers", None)
    if parts is not None:
        return any(_runs_again(part) for part in parts)
    return type(trigger).__name__ != "DateTrigger"


def _note(span: Any, events: list[Any]) -> None:
    from apscheduler.events import EVENT_JOB_MISSED

    for event in events:
        if event.exception is not None:
            record(span, event.exception)
        elif event.code == EVENT_JOB_MISSED:
            span.set_attribute("tracefill.job.missed", True)


def _run_job(original: Any) -> Any:
    def run_job(job: Any, jobstore_alias: Any, run_times: Any, logger_name: Any) -> list[Any]:
        if not _patches.active:
            return list(original(job, jobstore_alias, run_times, logger_name))
        events: list[Any] = []
        for run_time in run_times:
            with _run(job, run_time) as span:
                ran = original(job, jobstore_alias, [run_time], logger_name)
                _note(span, ran)
            events += ran
        return events

    return run_job


def _run_coroutine_job(original: Any) -> Any:
    async def run_coroutine_job(job: Any, jobstore_alias: Any, run_times: Any, logger_name: Any) -> list[Any]:
        if not _patches.active:
            return list(await original(job, jobstore_alias, run_times, logger_name))
        events: list[Any] = []
        for run_time in run_times:
            with _run(job, run_time) as span:
                ran = await original(job, jobstore_alias, [run_time], logger_name)
                _note(span, ran)
            events += ran
        return events

    return run_coroutine_job


def patch() -> None:
    try:
        base = importlib.import_module("apscheduler.executors.base")
    except ImportError:  # APScheduler 4 has no executors of this kind
        return
    job = importlib.import_module("apscheduler.job").Job
    _patches.wrap(job, "_modify", _modify)
    _patches.wrap(job, "__getstate__", _getstate)
    _patches.wrap(job, "__setstate__", _setstate)
    _patches.wrap(base, "run_job", _run_job)
    _patches.wrap(base, "run_coroutine_job", _run_coroutine_job)
    for executors in _modules("executors", "pool", "asyncio", "debug"):
        for name in ("run_job", "run_coroutine_job"):
            if hasattr(executors, name):
                _patches.replace(executors, name, getattr(base, name))  # one object: it is pickled by its name
    for schedulers in _modules("schedulers", "base", "blocking", "background", "asyncio"):
        for scheduler in _own_classes(schedulers):
            for name in ("start", "wakeup", "_start_timer"):
                if name in vars(scheduler) and not getattr(vars(scheduler)[name], "__isabstractmethod__", False):
                    _patches.wrap(scheduler, name, in_nobodys_name)


def _modules(package: str, *names: str) -> Iterator[Any]:
    """Those of APScheduler itself, and those for another library where that is in use."""
    for name in (*names, *(other for other in ("gevent", "tornado", "twisted") if other in sys.modules)):
        with contextlib.suppress(ImportError):
            yield importlib.import_module(f"apscheduler.{package}.{name}")


def _own_classes(module: Any) -> list[type]:
    return [found for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__]


def unpatch() -> None:
    _patches.undo()
