"""RQ 1.10 and later: a job continues the request that enqueued it, in simple, forking and spawning workers, retried or scheduled.

    queue.enqueue(send_mail, order)     # `enqueue send_mail` under the current span, `run send_mail` below it in the worker

The context is a field of the job's hash in Redis, `tracefill`; `job.meta` stays the user's. A worker belongs to nobody,
whatever its command line has opened.

>>> import rq.job, tracefill
>>> tracefill.install(only=["rq"])
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     stored = rq.job.Job.create(print, connection=object()).to_dict()    # as `enqueue` writes it
>>> json.loads(stored["tracefill"])["traceparent"]
'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
"""

from __future__ import annotations

import json
import pickle
from typing import Any

from opentelemetry.trace import get_current_span

from tracefill.jobs.job_spans import Job, carried, enqueuing, in_nobodys_name, running
from tracefill.spans import Tracer, record
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("rq",)

#: Pickled for the horse of a SpawnWorker. Given by `tracefill.patches`.
same_as_here: object = None

_patches = Patches()
_tracer = Tracer("tracefill.jobs.rq")
_FIELD = "tracefill"
_HELD = "_tracefill"
_RETRIES = "tracefill-retries"  # beside the headers: how many there were to be, which the job itself counts down


def _job(job: Any) -> Job:
    enqueued = job.enqueued_at or job.created_at
    return Job(
        "rq",
        job.func_name or "job",
        job.origin or None,
        job.id,
        _attempt(job),
        enqueued.timestamp() * 1000 if enqueued else None,
    )


def _attempt(job: Any) -> int:
    returned = getattr(job, "number_of_retries", None) or 0  # by a job that asked for it; the others have failed
    try:
        return returned + int(vars(job)[_HELD][_RETRIES]) - (job.retries_left or 0) + 1
    except (KeyError, TypeError, ValueError):
        return returned + 1


def _headers(job: Any) -> dict[str, str]:
    headers = carried()
    return {**headers, _RETRIES: str(job.retries_left)} if headers and job.retries_left else headers


def _enqueue(original: Any) -> Any:
    def enqueue(self: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        if _HELD in vars(job):  # a retry, a dependent, or the inner one of two of these
            return original(self, job, *args, **kwargs)
        with enqueuing(_tracer, Job("rq", job.func_name or "job", self.name, job.id)):
            vars(job)[_HELD] = _headers(job)
            return original(self, job, *args, **kwargs)

    return enqueue


def _to_dict(original: Any) -> Any:
    def to_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
        fields = original(self, *args, **kwargs)
        headers = vars(self).setdefault(_HELD, _headers(self))
        if headers:
            fields[_FIELD] = json.dumps(headers)
        return fields

    return to_dict


def _restore(original: Any) -> Any:
    def restore(self: Any, raw_data: Any) -> Any:
        result = original(self, raw_data)
        text = raw_data.get(_FIELD.encode()) or raw_data.get(_FIELD)
        try:
            headers = json.loads(text) if text else {}
        except ValueError:
            headers = {}
        vars(self)[_HELD] = headers if isinstance(headers, dict) else {}
        return result

    return restore


# --------------------------------------------------------------------------------------------------------------- running


def _run(original: Any) -> Any:
    def run(self: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        with running(_tracer, _job(job), vars(job).get(_HELD)):
            return original(self, job, *args, **kwargs)

    return run


def _perform(original: Any) -> Any:
    def perform(self: Any) -> Any:
        try:
            return original(self)
        except Exception as error:  # the worker keeps it from whoever is above
            record(get_current_span(), error)
            raise

    return perform


class _SetUp:
    """The settings of a horse that is spawned; unpickled, they are what they were, and the horse is as its worker."""

    def __init__(self, settings: bytes) -> None:
        self._settings = settings

    def __reduce__(self) -> tuple[Any, ...]:
        return _settings, (self._settings, same_as_here)


def _settings(settings: bytes, _: object) -> Any:
    return pickle.loads(settings)


def _dump_worker_config(original: Any) -> Any:
    def dump_worker_config(self: Any) -> bytes:
        return pickle.dumps(_SetUp(original(self)))

    return dump_worker_config


def patch() -> None:
    import rq.job
    import rq.queue
    import rq.worker

    worker = getattr(rq.worker, "BaseWorker", rq.worker.Worker)
    for name in ("enqueue_job", "schedule_job", "_enqueue_job"):
        if hasattr(rq.queue.Queue, name):
            _patches.wrap(rq.queue.Queue, name, _enqueue)
    _patches.wrap(rq.job.Job, "to_dict", _to_dict)
    _patches.wrap(rq.job.Job, "restore", _restore)
    _patches.wrap(rq.job.Job, "perform", _perform)
    _patches.wrap(rq.queue.Queue, "run_sync", _run)
    _patches.wrap(worker, "perform_job", _run)
    _patches.wrap(worker, "work", in_nobodys_name)
    spawning = getattr(rq.worker, "SpawnWorker", None)
    if hasattr(spawning, "_dump_worker_config"):
        _patches.wrap(spawning, "_dump_worker_config", _dump_worker_config)


def unpatch() -> None:
    _patches.undo()
