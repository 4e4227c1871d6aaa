"""What came along, as against what the running code has opened itself.

A thread, a task or a greenlet starts with the context of whoever started it, and an item brings that of whoever put it into
its queue. Code that then takes the next item takes on the next job, and its context changes. But code that has opened a span
of its own keeps that, whatever it takes: it takes a reply, or a connection out of a pool.
"""

from __future__ import annotations

import contextvars
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from tracefill import _codec
from tracefill.context import Scope, current, scope
from tracefill.handoff.workers import TAKES, loop_of
from tracefill.snapshots import Snapshot, snapshot

__all__ = ["NOTHING", "begin", "bring", "brought", "end", "forget_what_is_over", "once", "variables_with"]

#: A context without anything in it.
NOTHING = Context()


class _Note(NamedTuple):
    """What this code has its context from. Copied along with the variables, so it may be somebody else's."""

    base: Context | None  # what it began with
    taken: _Taken | None = None


class _Taken(NamedTuple):
    item_id: int
    context: Context
    frame_id: int  # of the frame that took the item
    scope: Scope
    variables: object  # a weak reference to the contextvars.Context that this was noted in


_noted: ContextVar[_Note | None] = ContextVar("tracefill_carried", default=None)


def begin(context: Context) -> Token[_Note | None]:
    """Notes that whatever begins here, or copies its variables from here, begins with this context."""
    return _noted.set(_Note(context))


def end(token: Token[_Note | None]) -> None:
    """Takes the note back."""
    _noted.reset(token)


def variables_with(context: Context) -> contextvars.Context:
    """New context variables, in which nothing is set but this context: what a greenlet begins with."""
    variables = contextvars.Context()
    variables.run(otel_context.attach, context)
    variables.run(begin, context)
    return variables


def bring(context: Context, item: object, taker: FrameType) -> None:
    """Makes the context of an item that `taker` has just taken current, until the next is brought.

    Nothing happens deeper in the stack than where another item was taken that is being handled: what is taken there is a
    reply, or something that the handling needs. Nor while the taker has a context of his own, but for a worker's loop inside
    a span that takes an item of another trace.
    """
    note = _noted.get()
    taken = _taken_here(note)
    base = note.base if note is not None else None
    if taken is not None:
        if not _is_current(taken.context) or _is_inside(taker, taken.frame_id):
            return
        taken.scope.__exit__(None, None, None)
    here = current()
    if here and here is not base and not (loop_of(taker.f_code) == TAKES and _is_of_another_trace(context)):
        _noted.set(_Note(base))
        return
    opened = scope(context)
    opened.__enter__()
    _noted.set(_Note(base, _Taken(id(item), context, id(taker), opened, _codec.variables_here())))


def _taken_here(note: _Note | None) -> _Taken | None:
    """The item that is being handled here; None also where the note was copied from where one is handled."""
    if note is None or note.taken is None or note.taken.variables is not _codec.variables_here():
        return None
    return note.taken


def brought(item: object) -> Context | None:
    """The context that came with this item, if it is the one that was taken here last."""
    note = _noted.get()
    return (
        note.taken.context if note is not None and note.taken is not None and note.taken.item_id == id(item) else None
    )


def forget_what_is_over() -> None:
    """Whoever takes on more work when the span has ended that he was started in works for somebody else from here on."""
    note = _noted.get()
    if note is None or note.taken is not None or not note.base or current() is not note.base:
        return
    if getattr(trace.get_current_span(note.base), "end_time", None) is not None:
        otel_context.attach(NOTHING)
        _noted.set(None)


def _is_current(context: Context) -> bool:
    here = current()
    return here is context or not (here or context)


def _is_of_another_trace(context: Context) -> bool:
    other = trace.get_current_span(context).get_span_context()
    return other.is_valid and other.trace_id != trace.get_current_span().get_span_context().trace_id


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
