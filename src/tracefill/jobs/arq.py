"""arq 0.25 and later: a job continues the request that enqueued it; a cron job is a trace of its own.

    await redis.enqueue_job("send_mail", order)     # `enqueue send_mail` under the current span, `run send_mail` below it

The context is a key of the serialized job, `tracefill`, which a worker without tracefill never looks at. A worker belongs to
nobody, whatever its command line has opened.

>>> import arq.connections, pickle, tracefill
>>> tracefill.install(only=["arq"])
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     stored = arq.connections.serialize_job("send_mail", (17,), {}, None, 0)     # as `enqueue_job` writes it
>>> pickle.loads(stored)["tracefill"]["traceparent"]
'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
"""

from __future__ import annotations

import copy
from contextvars import ContextVar
from typing import Any

from tracefill.context import extract, scope
from tracefill.jobs.job_spans import Job, by_nobody, carried, enqueuing, running
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("arq",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.arq")
_KEY = "tracefill"
_brought: ContextVar[dict[str, str] | None] = ContextVar("tracefill-arq", default=None)


def _enqueue_job(original: Any) -> Any:
    async def enqueue_job(self: Any, function: str, *args: Any, **kwargs: Any) -> Any:
        queue = kwargs.get("_queue_name") or self.default_queue_name
        with enqueuing(_tracer, Job("arq", function, queue, kwargs.get("_job_id"))):
            return await original(self, function, *args, **kwargs)

    return enqueue_job


def _serialize_job(original: Any) -> Any:
    def serialize_job(*args: Any, serializer: Any = None) -> bytes:
        headers = carried()
        if serializer is None:
            from pickle import dumps as serializer
        if not headers:
            return bytes(original(*args, serializer=serializer))
        return bytes(original(*args, serializer=lambda job: serializer({**job, _KEY: headers})))

    return serialize_job


# --------------------------------------------------------------------------------------------------------------- running


def _deserialize_job_raw(original: Any) -> Any:
    def deserialize_job_raw(data: bytes, *, deserializer: Any = None) -> Any:
        if deserializer is None:
            from pickle import loads as deserializer

        def read(data: bytes) -> Any:
            job = deserializer(data)
            _arrive(job.get(_KEY) if isinstance(job, dict) else None)
            return job

        return original(data, deserializer=read)

    return deserialize_job_raw


def _arrive(headers: Any) -> None:
    """The rest of `run_job`, the user's hooks included, is the job's. `run_job` puts back what was current before."""
    if isinstance(headers, dict):
        _brought.set(headers)
        scope(extract(headers)).__enter__()


def _run_job(original: Any) -> Any:
    async def run_job(self: Any, job_id: str, *args: Any, **kwargs: Any) -> Any:
        self.functions = {name: _traced(function, self.queue_name) for name, function in self.functions.items()}
        _brought.set(None)
        with by_nobody():
            return await original(self, job_id, *args, **kwargs)

    return run_job


def _traced(function: Any, queue: str) -> Any:
    """A copy of what arq knows of a function, with a coroutine that opens the span."""
    coroutine = function.coroutine
    if getattr(coroutine, "_tracefill", False):
        return function

    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        if not _patches.active:
            return await coroutine(ctx, *args, **kwargs)
        job = Job("arq", function.name, queue, ctx.get("job_id"), ctx.get("job_try"), ctx.get("score"))
        with running(_tracer, job, _brought.get()):
            return await coroutine(ctx, *args, **kwargs)

    run._tracefill = True  # type: ignore[attr-defined]
    traced = copy.copy(function)
    traced.coroutine = run
    return traced


def _main(original: Any) -> Any:
    async def main(self: Any) -> Any:
        with by_nobody():
            return await original(self)

    return main


def patch() -> None:
    import arq.connections
    import arq.worker

    _patches.wrap(arq.connections.ArqRedis, "enqueue_job", _enqueue_job)
    _patches.wrap(arq.connections, "serialize_job", _serialize_job)
    _patches.wrap(arq.worker, "deserialize_job_raw", _deserialize_job_raw)
    _patches.wrap(arq.worker.Worker, "run_job", _run_job)
    _patches.wrap(arq.worker.Worker, "main", _main)


def unpatch() -> None:
    _patches.undo()
