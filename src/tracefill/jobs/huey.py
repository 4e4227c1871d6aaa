"""huey 2 and 3: a task continues the request that called it, with retries, delays and pipelines; a periodic task is a trace of its own.

    send_mail(order)        # `enqueue send_mail` under the current span, `run send_mail` below it in the consumer

The context follows the end of the pickled message, where a consumer without tracefill does not read. A consumer belongs to
nobody. A serializer of the user's own that does not pickle carries no context.

>>> import huey, tracefill
>>> from opentelemetry.trace import get_current_span
>>> tracefill.install(only=["huey"])
>>> jobs = huey.MemoryHuey()
>>> @jobs.task()
... def send_mail(order):
...     print(f"{get_current_span().get_span_context().trace_id:x}")
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     asked = send_mail(17)
>>> jobs.execute(jobs.dequeue())            # as a consumer does
4bf92f3577b34da6a3ce929d0e0e4736
"""

from __future__ import annotations

import json
import threading
from typing import Any

from opentelemetry.trace import get_current_span

from tracefill.context import current
from tracefill.jobs.job_spans import Job, carried, enqueuing, in_nobodys_name, running, running_here
from tracefill.spans import Tracer, record
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("huey",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.huey")
_HELD = "_tracefill"
_MARK = b"\ntracefill:"
_RETRIES = "tracefill-retries"  # beside the headers: how many there were to be, which the task itself counts down
_at_hand = threading.local()


def _job(task: Any, huey: Any) -> Job:
    attempt = _retries(task) - (task.retries or 0) + 1
    due_ms = task.eta.timestamp() * 1000 if task.eta is not None and not huey.utc else None
    return Job("huey", task.name or type(task).__name__, huey.name, task.id, max(1, attempt), due_ms)


def _retries(task: Any) -> int:
    try:
        return int(vars(task)[_HELD][_RETRIES])
    except (KeyError, TypeError, ValueError):
        return getattr(task, "default_retries", None) or 0


def _enqueue(original: Any) -> Any:
    def enqueue(self: Any, task: Any) -> Any:
        if not hasattr(task, "retries") or (_HELD in vars(task) and not current()):
            return original(self, task)  # a group of tasks; or one whose time has come
        with enqueuing(_tracer, _job(task, self)):
            return original(self, task)

    return enqueue


def _serialize_task(original: Any) -> Any:
    def serialize_task(self: Any, task: Any) -> Any:
        held = vars(task).get(_HELD) or {}
        headers = carried() or held
        retries = held.get(_RETRIES) or task.retries
        _at_hand.headers = {**headers, _RETRIES: str(retries)} if headers and retries else headers
        try:
            return original(self, task)
        finally:
            _at_hand.headers = None

    return serialize_task


def _serialize(original: Any) -> Any:
    def _serialize(self: Any, data: Any) -> bytes:
        pickled: bytes = original(self, data)
        headers = getattr(_at_hand, "headers", None)
        return pickled + _MARK + json.dumps(headers).encode() if headers else pickled

    return _serialize


def _deserialize(original: Any) -> Any:
    def _deserialize(self: Any, data: bytes) -> Any:
        _at_hand.found = bytes(data).rpartition(_MARK)[2] if _MARK in data else None
        return original(self, data)

    return _deserialize


def _deserialize_task(original: Any) -> Any:
    def deserialize_task(self: Any, data: Any) -> Any:
        _at_hand.found = None
        task = original(self, data)
        headers = _headers(_at_hand.found)
        if headers:
            vars(task)[_HELD] = headers
        return task

    return deserialize_task


def _headers(text: bytes | None) -> dict[str, str] | None:
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# --------------------------------------------------------------------------------------------------------------- running


def _execute(original: Any) -> Any:
    def _execute(self: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        job = _job(task, self)
        with running_here(_tracer, job) if self.immediate else running(_tracer, job, vars(task).get(_HELD)):
            return original(self, task, *args, **kwargs)

    return _execute


def _emit(original: Any) -> Any:
    def _emit(self: Any, signal: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        if signal == "error" and args and isinstance(args[0], Exception):
            record(get_current_span(), args[0])
        return original(self, signal, task, *args, **kwargs)

    return _emit


def patch() -> None:
    from huey.api import Huey
    from huey.consumer import Consumer
    from huey.serializer import Serializer

    _patches.wrap(Huey, "enqueue", _enqueue)
    _patches.wrap(Huey, "serialize_task", _serialize_task)
    _patches.wrap(Huey, "deserialize_task", _deserialize_task)
    _patches.wrap(Serializer, "_serialize", _serialize)
    _patches.wrap(Serializer, "_deserialize", _deserialize)
    _patches.wrap(Huey, "_execute", _execute)
    _patches.wrap(Huey, "_emit", _emit)
    _patches.wrap(Consumer, "start", in_nobodys_name)


def unpatch() -> None:
    _patches.undo()
