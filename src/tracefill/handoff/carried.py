"""What came along, as against what the running code has opened itself.

A thread, a task or a greenlet starts with the context of whoever started it, and an item brings that of whoever put it into
its queue. Code that then takes the next item takes on the next job, and the context changes; but code that has opened a span of
its own keeps that, whatever it takes: it takes a reply, or a connection out of a pool.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from types import FrameType
from typing import NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from tracefill.context import current

__all__ = ["NOTHING", "bring", "forget_what_is_over", "inherited"]

#: A context without anything in it.
NOTHING = Context()


class Carried(NamedTuple):
    context: Context
    taken_in: int  # the id of the frame that took the item; 0: it came with the thread, task or greenlet


#: Set in whatever is started, so that it can tell what it was started with.
_carried: ContextVar[Carried | None] = ContextVar("tracefill_carried", default=None)


def inherited(context: Context) -> Carried:
    """Notes that the code that begins here has this context from whoever started it. Returns the note, for a test."""
    note = Carried(context, 0)
    _carried.set(note)
    return note


def bring(context: Context, taker: FrameType) -> None:
    """Makes the context of an item that `taker` has just taken current, until the next is brought.

    Nothing happens while the taker has a context of its own, nor inside of the handling of another item: what is taken
    deeper in the stack than that one was is a reply to it, or something that it needs.
    """
    here = current()
    if here:
        note = _carried.get()
        if note is None or note.context is not here or (note.taken_in and _is_below(taker, note.taken_in)):
            return
    if here or context:
        otel_context.attach(context)
    _carried.set(Carried(context, id(taker)))


def forget_what_is_over() -> None:
    """Whoever takes on more work after the span has ended that he was started in works for somebody else from here on."""
    note = _carried.get()
    if note is None or note.taken_in or not note.context or current() is not note.context:
        return
    if getattr(trace.get_current_span(note.context), "end_time", None) is not None:
        otel_context.attach(NOTHING)
        _carried.set(None)


def _is_below(frame: FrameType, other: int) -> bool:
    """True when the frame with this id is further out on the stack than `frame`."""
    outer = frame.f_back
    while outer is not None:
        if id(outer) == other:
            return True
        outer = outer.f_back
    return False


def taker_of(depth: int, files: tuple[str, ...]) -> FrameType:
    """The first frame from `depth` outwards whose code is in none of these files."""
    frame = sys._getframe(depth + 1)
    while frame.f_code.co_filename in files and frame.f_back is not None:
        frame = frame.f_back
    return frame
