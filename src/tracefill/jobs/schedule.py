"""schedule 1: the first run of a job continues the request that scheduled it; the later ones are traces of their own, with a link.

    schedule.every(10).minutes.do(clean_up)     # outside of any request: the run is what it would be without tracefill
    schedule.run_pending()

>>> import schedule, tracefill
>>> from opentelemetry.trace import get_current_span
>>> tracefill.install(only=["schedule"])
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     job = schedule.every().hour.do(lambda: print(f"{get_current_span().get_span_context().trace_id:x}"))
>>> schedule.run_all()
4bf92f3577b34da6a3ce929d0e0e4736
>>> schedule.clear()
"""

from __future__ import annotations

from typing import Any

from tracefill.jobs.job_spans import Job, scheduled
from tracefill.jobs.origins import Origins, origin
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("schedule",)

_patches = Patches()
_tracer = Tracer("tracefill.jobs.schedule")
_origins = Origins()


def _do(original: Any) -> Any:
    def do(self: Any, *args: Any, **kwargs: Any) -> Any:
        _origins[self] = origin()
        return original(self, *args, **kwargs)

    return do


def _run(original: Any) -> Any:
    def run(self: Any) -> Any:
        asked = _origins.get(self)
        if asked is None or asked.here is None:
            return original(self)
        again = asked.is_over()
        asked.runs += 1
        due_ms = self.next_run.timestamp() * 1000 if self.next_run else None
        job = Job("schedule", getattr(self.job_func, "__name__", "job"), due_ms=due_ms)
        with scheduled(_tracer, job, asked.context, again=again, asked_ms=asked.asked_ms):
            return original(self)

    return run


def patch() -> None:
    import schedule

    _patches.wrap(schedule.Job, "do", _do)
    _patches.wrap(schedule.Job, "run", _run)


def unpatch() -> None:
    _patches.undo()
