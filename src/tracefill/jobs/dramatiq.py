"""dramatiq 1.16 and later: an actor continues the request that sent its message, through delays, retries, pipelines and groups.

    send_mail.send(order)       # `enqueue send_mail` under the current span, `run send_mail` below it in the worker

The context is an option of the message, `tracefill`. Any broker. A worker belongs to nobody.

>>> import dramatiq, tracefill
>>> from dramatiq.brokers.stub import StubBroker
>>> from opentelemetry.trace import get_current_span
>>> tracefill.install(only=["dramatiq"])
>>> broker, seen = StubBroker(), []
>>> @dramatiq.actor(broker=broker)
... def send_mail(order):
...     seen.append(f"{get_current_span().get_span_context().trace_id:x}")
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     message = send_mail.send(17)
>>> worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
>>> worker.start()
>>> broker.join("default")
>>> seen
['4bf92f3577b34da6a3ce929d0e0e4736']
>>> worker.stop()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from opentelemetry.trace import get_current_span

from tracefill.context import current
from tracefill.jobs.job_spans import Job, carried, enqueuing, in_nobodys_name, running
from tracefill.spans import Tracer, record
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("dramatiq",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.dramatiq")
_OPTION = "tracefill"
_enqueuing: ContextVar[str | None] = ContextVar("tracefill-dramatiq", default=None)


def _job(message: Any) -> Job:
    options = message.options
    attempt = (options.get("retries") or 0) + 1
    return Job("dramatiq", message.actor_name, message.queue_name, message.message_id, attempt, options.get("eta"))


def _enqueue(original: Any) -> Any:
    def enqueue(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        is_due_now = _OPTION in message.options and not current()  # it was delayed, and brings its context along
        if is_due_now or _enqueuing.get() == message.message_id:
            return original(self, message, *args, **kwargs)
        token = _enqueuing.set(message.message_id)
        try:
            with enqueuing(_tracer, _job(message)):
                headers = carried()
                if headers:
                    message = message.copy(options={_OPTION: headers})
                return original(self, message, *args, **kwargs)
        finally:
            _enqueuing.reset(token)

    return enqueue


def _process_message(original: Any) -> Any:
    def process_message(self: Any, message: Any) -> Any:
        with running(_tracer, _job(message), message.options.get(_OPTION), message.message_timestamp):
            return original(self, message)

    return process_message


def _emit_after(original: Any) -> Any:
    def emit_after(self: Any, signal: str, *args: Any, **kwargs: Any) -> Any:
        if signal == "process_message" and kwargs.get("exception") is not None:
            record(get_current_span(), kwargs["exception"])
        return original(self, signal, *args, **kwargs)

    return emit_after


def _init(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        kinds: tuple[type, ...] = type(self).__mro__
        for kind in kinds:
            if "enqueue" in vars(kind):
                _patches.wrap(kind, "enqueue", _enqueue)

    return __init__


def _kinds(broker: type) -> Iterator[type]:
    kinds: list[type] = broker.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _kinds(kind)


def patch() -> None:
    from dramatiq import worker
    from dramatiq.broker import Broker

    _patches.wrap(Broker, "__init__", _init)
    _patches.wrap(Broker, "emit_after", _emit_after)
    for kind in _kinds(Broker):
        if "enqueue" in vars(kind):
            _patches.wrap(kind, "enqueue", _enqueue)
    for name in ("start", "_add_worker", "_add_consumer"):
        if hasattr(worker.Worker, name):
            _patches.wrap(worker.Worker, name, in_nobodys_name)
    threads = [kind for kind in vars(worker).values() if isinstance(kind, type) and hasattr(kind, "process_message")]
    for kind in threads:
        _patches.wrap(kind, "process_message", _process_message)


def unpatch() -> None:
    _patches.undo()
