"""What came along, as against what the running code has opened itself.

A thread, a task or a greenlet starts with the context of whoever started it, and an item brings that of whoever put it into
its queue. Code that then takes the next item takes on the next job, and its context changes. But code that has opened a span
of its own keeps that, whatever it takes: it takes a reply, or a connection out of a pool.
"""

from __future__ import annotations

import contextvars
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from tracefill.context import current
from tracefill.snapshots import Snapshot, snapshot

__all__ = ["NOTHING", "Carried", "begin", "bring", "brought", "forget_what_is_over", "once", "variables_with"]

#: A context without anything in it.
NOTHING = Context()


class Carried(NamedTuple):
    """A context that came along. `taken_in` is the id of the frame that took the item it came with; 0: it came with the
    thread, task or greenlet itself."""

    context: Context
    taken_in: int = 0
    item: object = None


_carried: ContextVar[Carried | None] = ContextVar("tracefill_carried", default=None)


def begin(context: Context) -> contextvars.Token[Carried | None]:
    """Notes that whatever begins here begins with this context, for it or for what copies its variables from here."""
    return _carried.set(Carried(context))


def end(token: contextvars.Token[Carried | None]) -> None:
    """Takes the note back."""
    _carried.reset(token)


def variables_with(context: Context) -> contextvars.Context:
    """New context variables, in which nothing is set but this context: what a greenlet begins with."""
    variables = contextvars.Context()
    variables.run(otel_context.attach, context)
    variables.run(begin, context)
    return variables


def bring(context: Context, item: object, taker: FrameType) -> None:
    """Makes the context of an item that `taker` has just taken current, until the next is brought.

    Nothing happens while the taker has a context of its own; nor inside the handling of another item, that is deeper in
    the stack than where that was taken: there it takes a reply, or something that it needs.
    """
    here = current()
    if here:
        note = _carried.get()
        if note is None or note.context is not here or (note.taken_in and _is_inside(taker, note.taken_in)):
            return
    if here or context:
        otel_context.attach(context)
    _carried.set(Carried(context, id(taker), item))


def brought(item: object) -> Context | None:
    """The context that came with the item, when it is the one that was taken here last."""
    note = _carried.get()
    return note.context if note is not None and note.taken_in and note.item is item else None


def forget_what_is_over() -> None:
    """Whoever takes on more work when the span has ended in which he was started works for somebody else from here on."""
    note = _carried.get()
    if note is None or note.taken_in or not note.context or current() is not note.context:
        return
    if getattr(trace.get_current_span(note.context), "end_time", None) is not None:
        otel_context.attach(NOTHING)
        _carried.set(None)


def once(function: Any) -> Any:
    """A callable that runs the function in the context of now, and only once: its snapshot is given back then."""
    if not callable(function):
        return function
    here: Snapshot = snapshot()

    def carried(*args: Any, **kwargs: Any) -> Any:
        try:
            return here.run(function, *args, **kwargs)
        finally:
            here.release()

    carried.__wrapped__ = function  # type: ignore[attr-defined]
    return carried


def _is_inside(frame: FrameType, other: int) -> bool:
    """True when the frame with this id is further out on the stack."""
    outer = frame.f_back
    while outer is not None:
        if id(outer) == other:
            return True
        outer = outer.f_back
    return False
