"""The time in which a message is handled, for libraries that hand messages over and never hear of them again.

`for record in consumer:`, `message = consumer.poll()`, `for message in consumer.consume(100):` - a program takes a message,
handles it and takes the next, and nobody says when the handling ends. So it ends with the first of

- the next take: of the same consumer, or in the same function, or the next item of the same loop or batch;
- the end of the loop: it is used up, left by `break` or by an exception;
- the end of the function that took the message and worked under it. One that only fetches (`return message.value()`) hands
  the handling on to its caller;
- the consumer's `close` or `unsubscribe`; who has the message in a variable may still work for it afterwards.

Then what was current before is current again. The span ends when nobody works under it any more: work that was handed to
a pool, a task or a queue carries the context, and the context holds the span; after half a minute it ends in any case.

A batch (`poll()` of kafka-python, `consume(n)`, `getmany()`) is current as a whole until it is walked; its span, which has a
link to each message's sender, is made when another is started under it. Walking it gives each message a handling of its own.

A message that nobody worked under, and that somebody has kept (`records.extend(batch)`, `[next(consumer) for _ in range(3)]`),
waits: work that is begun later by a function that has it in hand (see tracefill.messages.in_hand) is done under its span.
"""

from __future__ import annotations

import atexit
import contextlib
import dis
import gc
import logging
import opcode
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from itertools import pairwise
from types import CodeType, FrameType, TracebackType
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar, cast, overload

from opentelemetry.context import Context, create_key
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span

from tracefill._codec import current_context, current_value, make_current
from tracefill.messages.in_hand import collects, values_in_hand
from tracefill.messages.message_spans import (
    ATTEMPT_HEADER,
    ORIGINAL_HEADER,
    SPAN_KEY,
    Source,
    attempt_of,
    original_of,
)
from tracefill.sdk_spans import end_span
from tracefill.spans import record, suppressed
from tracefill.wrapping import Patches

__all__ = [
    "AsyncWalk",
    "Batch",
    "Handling",
    "Processing",
    "Several",
    "Walk",
    "expect",
    "finish",
    "handled",
    "is_library",
    "leave",
    "patch_wait_for",
    "republished",
    "take",
    "taker",
    "unpatch_wait_for",
    "unwalked",
]

T = TypeVar("T")

_logger = logging.getLogger("tracefill")
_KEY = create_key("tracefill-handling")
_LINGER_NS = 30 * 10**9
_NOWHERE = Context()
_get = dict.get  # that of _Finding is for those who look for the current span
_put = dict.__setitem__


def handled() -> Handling | None:
    """The handling that is going on here; None when no message is being handled."""
    return cast("Handling | None", current_value(_KEY))


def _handling_of(context: Context) -> Handling | None:
    return cast("Handling | None", _get(context, _KEY))


class Handling:
    """One message, or one batch, being handled. `owner`: whose next take ends it (a consumer, a batch)."""

    __slots__ = (
        "__weakref__",
        "before",
        "by_variable",
        "carried",
        "closed_ns",
        "message",
        "owner",
        "pending",
        "references",
        "source",
        "span",
        "used",
    )

    def __init__(self, owner: object, source: Source, message: Any) -> None:
        self.owner = owner
        self.source = source
        self.message = message
        self.span: Span | None = None
        self.before = _NOWHERE
        self.closed_ns = 0
        self.carried = _NOWHERE  # what came with the message
        self.references = _OWN_REFERENCES  # to the message; where there are more in the end, somebody has kept it
        self.by_variable = False  # who has it in a variable keeps it: there is no variable that says nothing
        self.used = False  # a span was started under it
        self.pending = False  # its own span is made when that happens

    def begin(self, *, lazily: bool = False, watched: bool = False) -> None:
        """Makes it current. `lazily`: its span is made when the first is started under it; `watched`: that is noted."""
        self.before = _open(current_context())
        self.pending = lazily
        if not lazily:
            self._start()
        kind = _Watched if lazily or watched else _Finding if _waiting else Context
        make_current(self._fill(kind(self.carried)))

    def _start(self) -> None:
        """Its span, if anybody records it, and what came with the message."""
        source = self.source
        try:
            self.carried, self.span = (source.start_batch if self.is_batch else source.start)(self.message)
        except Exception:  # ours; the message has to reach the program
            _logger.debug("no span for a message of %s", type(source).__module__, exc_info=True)

    def _fill(self, context: Any) -> Any:
        """Puts the span and this handling into a context, or what is to become one."""
        if self.span is not None:
            _put(context, SPAN_KEY, self.span)
        _put(context, _KEY, self)
        return context

    @property
    def is_batch(self) -> bool:
        return isinstance(self.message, Several)

    def is_of(self, message: Any) -> bool:
        return self.message is message or (isinstance(self.message, tuple) and self.message == message)

    def work_begins(self, context: Context) -> None:
        """A span is about to be started under this handling, whose context this is."""
        self.used = True
        if self.pending:
            self.pending = False
            self._start()
            dict.update(context, self.carried)
            self._fill(context)
            if self.closed_ns:  # by the one who handed this work over
                self.linger()

    def end(self) -> None:
        """Puts back what was current before; the span ends with the last that refers to this handling."""
        if not self.closed_ns:
            self.close()
        if _is_within(self):
            before = _open(self.before)
            make_current(_finding(before) if _waiting and type(before) is Context and self.leaves_some() else before)
        if sys.getrefcount(self) > 3:  # not only the one who called this, `self` and the call that counts
            self.linger()

    def leaves_some(self) -> bool:
        """True when messages of this handling wait."""
        return any(id(message) in _waiting for message in (self.message if self.is_batch else (self.message,)))

    def close(self) -> None:
        self.closed_ns = time.time_ns()
        if not self.used and not self.is_batch and self.is_kept():
            _wait(self)

    def linger(self) -> None:
        """Somebody else refers to it, or may: its span ends with the last who does, but after half a minute in any case."""
        if self.span is not None:
            with _lingering_lock:
                while _lingering and _lingering[-1]() is None:
                    _lingering.pop()
                _lingering.append(weakref.ref(self))

    def is_kept(self) -> bool:
        """True when somebody has put the message away: a variable of the function that took it says nothing."""
        more = sys.getrefcount(self.message) - self.references
        return more > 0 and (self.by_variable or more > _variables_with(self.message))

    def inside(self) -> dict[str, Any]:
        """What the context of work for this message holds, which was taken earlier."""
        self.used, self.pending = True, False
        if self.span is None:
            self._start()
        context: dict[str, Any] = self._fill(dict(self.carried))
        return context

    def stop_waiting(self) -> None:
        if _waiting.pop(id(self.message), None) is not None and not self.used:
            self.end_span(self.closed_ns)

    def drop(self) -> None:
        """Where it waits for nobody but the function that is about to go: it waits no more, and nobody needs to find it."""
        if id(self.message) in _waiting and sys.getrefcount(self.message) <= _OWN_REFERENCES + 1:
            self.stop_waiting()
            if (plain := _open(current := current_context())) is not current:
                make_current(plain)

    def spread(self) -> None:
        """The messages of a batch, as those that may be handled one by one."""
        for message in self.message:
            if id(message) not in _waiting:
                _wait(Handling(self.owner, self.source, message))

    def end_span(self, end_time_ns: int | None = None) -> None:
        span, self.span = self.span, None
        if span is not None:
            end_span(span, end_time_ns)

    def __del__(self) -> None:
        # The garbage collector may run in the middle of anything, a span processor that holds its lock included.
        if self.span is None:
            return
        if _collecting:
            _to_end.append((self.span, time.time_ns()))
        else:
            self.end_span()


class _Finding(Context):
    """A context in which a message that waits may be handled: work for it is done under its span, and not under what is here.

    Who only looks (a log line, say) finds what is here.
    """

    plain: Context | None = None

    def get(self, key: str, default: Any = None) -> Any:
        is_start = key is SPAN_KEY and _is_tracer(frame := sys._getframe(1))
        return _get(self._above(frame) if is_start else self, key, default)

    def span_above(self) -> Any:
        """The span under which another is started now."""
        return _get(self._above(sys._getframe(1)), SPAN_KEY)

    def _above(self, frame: FrameType) -> dict[str, Any]:
        """What a span that is started in this frame is started under."""
        found = self._work_begins(frame)
        return self if found is None else found.inside()

    def copy(self) -> dict[str, Any]:
        """What the context of a new span, or any other that is made from this one, begins with."""
        found = _in_hand(sys._getframe(1), None) if _waiting else None
        return dict(self) if found is None else dict(self) | found.inside()

    def _work_begins(self, frame: FrameType) -> Handling | None:
        return _in_hand(frame, None) if _waiting else None


def _finding(plain: Context) -> _Finding:
    context = _Finding(plain)
    context.plain = plain
    return context


class _Watched(_Finding):
    """The context of a handling that has to know whether anybody works under it: starts a span."""

    def _work_begins(self, frame: FrameType) -> Handling | None:
        handling = dict.__getitem__(self, _KEY)
        assert isinstance(handling, Handling)
        if handling.pending and isinstance(handling.message, Several):
            handling.spread()
        found = _in_hand(frame, handling.message) if _waiting else None
        if found is None:
            handling.work_begins(self)
        elif not handling.used and not handling.is_batch:
            handling.end()  # they were all taken first, and this one the last
        return found


def _is_tracer(frame: FrameType) -> bool:
    """True when somebody looks for the parent of a new span: start_span -> get_current_span -> get_value."""
    asks = frame.f_back
    starts = asks.f_back if asks is not None else None
    return starts is not None and starts.f_code.co_name == "start_span"


class Several(tuple[Any, ...]):
    """Messages to be handled as one."""

    __slots__ = ()


def _is_within(handling: Handling) -> bool:
    """True when what is current here was made inside of this handling: only then is it ours to put back."""
    at = handled()
    while at is not None and at is not handling:
        at = _handling_of(at.before)
    return at is handling


def _open(context: Context) -> Context:
    """The context, or what was current before it where it is that of a handling that has ended."""
    while (found := _handling_of(context)) is not None and found.closed_ns:
        context = found.before
    if type(context) is _Finding and context.plain is not None and not _waiting:
        return context.plain
    return context


# --------------------------------------------------------------------------------------------------- messages that wait

_OWN_REFERENCES = 2  # that of its handling, and that of the call which counts them
_WAITING_CAPACITY = 10_000
_DEPTH = 64

# Messages that were taken and kept, and that nobody worked for, by their ids: the handling keeps the message, so it stays its own.
_waiting: dict[int, Handling] = {}
_takes_since = 0


def _wait(handling: Handling) -> None:
    if len(_waiting) < _WAITING_CAPACITY:
        _waiting[id(handling.message)] = handling


def _forget_dropped() -> None:
    """Ends the waiting for messages that nobody keeps any more; so seldom that a long list of them costs each take little."""
    global _takes_since
    _takes_since += 1
    if _takes_since * 8 < len(_waiting):
        return
    _takes_since = 0
    for handling in tuple(_waiting.values()):
        if sys.getrefcount(handling.message) <= _OWN_REFERENCES:
            handling.stop_waiting()


def expect() -> None:
    """Before a consumer is used in a task: a pool thread or another task may take the messages that are handled here."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        current = current_context()
        if type(current) is Context:
            make_current(_finding(current))


def _variables_with(message: Any) -> int:
    """How many variables of the program's functions that are running hold this message."""
    found, frame = 0, taker(sys._getframe(1))
    for _ in range(4):
        if frame is None:
            break
        found += sum(value is message for value in tuple(frame.f_locals.values()))
        frame = frame.f_back
    return found


def _in_hand(frame: FrameType | None, own: Any) -> Handling | None:
    """The waiting message that the program's innermost function with a message in hand has there; None when it has `own`."""
    found: Handling | None = None
    holder: FrameType | None = None
    for _ in range(_DEPTH):
        if frame is None:
            break
        if not f"{frame.f_globals.get('__name__')}.".startswith(_BETWEEN):
            for value in values_in_hand(frame):
                if found is None and value is own is not None:
                    return None
                handling = _waiting.get(id(value))
                if handling is not None and (found is None or handling is found):
                    found, holder = handling, frame
                    break
        frame = frame.f_back
    if found is not None and holder is not None:
        _guard_of(holder).take_up(found)
    return found


# ------------------------------------------------------------------------------------------------------- spans that linger

# Handlings that ended, and whose context somebody may still hold: the oldest first.
_lingering: deque[weakref.ref[Handling]] = deque()
_lingering_lock = threading.Lock()
_to_end: deque[tuple[Span, int]] = deque()
_collecting = False
_watching = False


def _lingered() -> list[Handling]:
    """Those that linger for too long."""
    found: list[Handling] = []
    last_ns = time.time_ns() - _LINGER_NS
    with _lingering_lock:
        while _lingering:
            handling = _lingering[0]()
            if handling is not None:
                if handling.closed_ns > last_ns:
                    break
                found.append(handling)
            _lingering.popleft()
    return found


def _note_collection(phase: str, info: dict[str, int]) -> None:
    global _collecting
    _collecting = phase == "start"


def _settle() -> None:
    """Ends the spans that the collector came across, and those that linger for too long."""
    global _watching
    if not _watching:
        # Not on import: the program's TracerProvider registers its shutdown before, and so is shut down after us.
        _watching = True
        gc.callbacks.append(_note_collection)
        atexit.register(_end_all)
    if _to_end:
        _end_collected()
    if _waiting:
        _forget_dropped()
    if _lingering:
        for handling in _lingered():
            handling.end_span(handling.closed_ns)


def _end_collected() -> None:
    with contextlib.suppress(IndexError):  # another thread was quicker
        while _to_end:
            span, ended_ns = _to_end.popleft()
            end_span(span, ended_ns)


def _end_all() -> None:
    """At the end of the program: the handling that was going on, and the work that nobody waited for."""
    while (at := handled()) is not None:
        at.end()
        at.end_span()
    for waiting in tuple(_waiting.values()):
        waiting.stop_waiting()
    for reference in tuple(_lingering):
        handling = reference()
        if handling is not None:
            handling.end_span()
    _end_collected()


def _leave_to_parent() -> None:
    """In a forked child: the spans of the handlings that were going on are the parent's to end."""
    global _lingering_lock
    _lingering_lock = threading.Lock()
    _lingering.clear()
    _to_end.clear()
    for waiting in _waiting.values():
        waiting.span = None
    at = handled()
    while at is not None:
        at.span = None
        at = _handling_of(at.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


# ----------------------------------------------------------------------------------------------- the function that takes

# Between a program and its consumer: our wrappers, contrib's, the client libraries, and asyncio's wait_for.
_CLIENTS = ("kafka.", "confluent_kafka.", "aiokafka.", "pika.", "aio_pika.", "aiormq.", "kombu.", "amqp.")
_BETWEEN = ("tracefill.messages.", "opentelemetry.", "wrapt.", "asyncio.tasks.", "asyncio.timeouts.", *_CLIENTS)


def is_library(frame: FrameType) -> bool:
    """True for code of a client library, which takes messages only to hand them on."""
    return f"{frame.f_globals.get('__name__')}.".startswith(_CLIENTS)


def taker(frame: FrameType | None) -> FrameType | None:
    """The program's own function among the callers; None when the standard library (a pool, an event loop) is the caller."""
    while frame is not None:
        name = f"{frame.f_globals.get('__name__')}."
        if not name.startswith(_BETWEEN):
            return None if name.partition(".")[0] in sys.stdlib_module_names else frame
        frame = frame.f_back
    return None


class _Guard:
    """Lies in a frame's `f_trace`, and dies with it: nothing else says in time that a function is left.

    Nobody calls it, but for a debugger, whose own function it then hands on to.
    """

    __slots__ = ("caller", "code", "found", "handling", "inner")

    def __init__(self, frame: FrameType) -> None:
        self.handling: Handling | None = None
        self.found: Handling | None = None
        self.code = frame.f_code
        self.caller = 0
        self.inner = frame.f_trace

    def __call__(self, frame: FrameType, event: str, argument: Any) -> _Guard:
        if self.inner is not None:
            self.inner = self.inner(frame, event, argument) or self.inner
        return self

    def take_up(self, found: Handling | None) -> None:
        """Here they work for a message that has waited, and no longer for the one before."""
        before, self.found = self.found, found
        if before is not None and before is not found and _waiting.pop(id(before.message), None) is before:
            _wait(Handling(before.owner, before.source, before.message))  # for the next who has it in hand

    def __del__(self) -> None:
        self.take_up(None)
        handling = self.handling
        if handling is None:
            return
        if handling.closed_ns:
            handling.drop()
            return
        # A function that fetched, and did not work under what it fetched: its caller will.
        hands_on = not handling.used and _returns_something(self.code)
        frame = sys._getframe(1) if hands_on else None
        if frame is not None and id(frame) == self.caller and (caller := taker(frame)) is not None:
            hold(handling, caller)
        else:
            handling.references += not hands_on  # the variable of the function that is about to go
            handling.end()


def _returns_something(code: CodeType) -> bool:
    """False for a generator, and for a function that returns nothing but None: nobody is handed a message by it."""
    if code not in _returning:
        steps = list(dis.get_instructions(code))
        # `return message if message else None` has one step for both, which is jumped to.
        returns = [(before, step) for before, step in pairwise(steps) if step.opname == "RETURN_VALUE"]
        results = [step if step.is_jump_target else before for before, step in returns]
        results += [step for step in steps if step.opname == "RETURN_CONST"]
        nothing = all(step.opname in ("LOAD_CONST", "RETURN_CONST") and step.argval is None for step in results)
        _returning[code] = not (nothing or code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))
    return _returning[code]


_returning: dict[CodeType, bool] = {}


def hold(handling: Handling, frame: FrameType) -> None:
    """The handling lasts until this function is left, or takes the next message."""
    guard = _guard_of(frame)
    previous, guard.handling, guard.caller = guard.handling, handling, id(frame.f_back)
    if previous is not None and not previous.closed_ns:
        previous.close()
        previous.linger()
        handling.before = _open(handling.before)


def _guard_of(frame: FrameType) -> _Guard:
    guard = frame.f_trace
    if not isinstance(guard, _Guard):
        guard = frame.f_trace = _Guard(frame)
    return guard


def finish(owner: object, frame: FrameType | None = None) -> None:
    """Before a take: what this owner, or this function, has taken before is handled."""
    while (at := handled()) is not None and at.owner is owner:
        at.end()
        if frame is None and at.used and sys.getrefcount(at) <= 3:
            at.end_span()  # nobody but the function or the loop that took it refers to it
    if frame is not None and isinstance(guard := frame.f_trace, _Guard):
        previous, guard.handling = guard.handling, None
        if previous is not None:
            previous.end()
    _settle()


def leave(owner: object) -> None:
    """Before a consumer is closed: what it has handed over is current no more. Who has it in a variable may still work for it."""
    while (at := handled()) is not None and at.owner is owner:
        at.by_variable = True
        at.end()
        if sys.getrefcount(at) <= 3:
            at.end_span()  # nobody but the function or the loop that took it refers to it
    _settle()


def take(owner: object, source: Source, message: Any, frame: FrameType | None, *, lazily: bool = False) -> None:
    """A message, or a batch (`lazily`), that the owner has handed to the function of this frame (see `taker`).

    Without a frame it is somebody in another task who asked: see `patch_wait_for`.
    """
    if suppressed():
        return
    handling = Handling(owner, source, message)
    # Those of the client too; that of this function and that of its caller are gone soon.
    handling.references = max(_OWN_REFERENCES, sys.getrefcount(message) - 2)
    if frame is not None:
        handling.begin(lazily=lazily, watched=True)
        hold(handling, frame)
    elif (adopted := _adopted.get()) is not None:
        adopted[:] = [(handling, lazily)]
    elif not lazily:
        _wait(handling)


# ----------------------------------------------------------------------------------------------------------- loops


_FOR_ITER = opcode.opmap["FOR_ITER"]

# The loops that are known to work under what they take: nothing that one of them keeps is still to be handled.
_working: set[tuple[CodeType, int]] = set()


def _is_for_loop(frame: FrameType) -> bool:
    """True when the frame stands at the head of a `for`, and does not ask by `next()` or through `list()`."""
    return frame.f_code.co_code[frame.f_lasti] == _FOR_ITER


class Walk(Generic[T]):
    """An iterator whose items are handled one after the other, each until the next is asked for or the loop is left."""

    __slots__ = ("_at", "_code", "_fetch", "_handling", "_in_loop", "_owner", "_source", "_surely")

    def __init__(self, owner: object, source: Source, fetch: Callable[[], T], *, surely: bool = False) -> None:
        self._owner = owner
        self._source = source
        self._fetch = fetch
        self._surely = surely  # a message that was fetched is handled, whoever asked for it
        self._handling: Handling | None = None
        self._code: CodeType | None = None
        self._at = -1
        self._in_loop = False

    def __iter__(self) -> Walk[T]:
        """One that lives as long as the loop, whoever keeps this one: that says when the loop is left."""
        return Walk(self._owner, self._source, self._fetch, surely=self._surely)

    def __next__(self) -> T:
        self._end()
        message = self._fetch()
        if suppressed() or self._source.is_no_message(message):
            return message
        if (held := handled()) is not None and held.message is message:
            self._handling = held  # by a `__next__` of the program's own, which has called the library's
            return message
        frame = sys._getframe(1)
        in_loop = self._is_in_loop(frame)
        handling = Handling(self._owner, self._source, message)
        handling.by_variable = True
        if self._surely and not in_loop and (caller := taker(frame)) is not None:
            handling.begin(watched=True)
            hold(handling, caller)
        else:
            # list(batch), sorted(batch): a span only if somebody works under it.
            handling.used = in_loop and (frame.f_code, frame.f_lasti) in _working
            handling.begin(lazily=not (in_loop or self._surely), watched=not handling.used)
            self._handling = handling
            # The loop's variable will be to it what `message` is now.
            handling.references = sys.getrefcount(handling.message) if in_loop else _OWN_REFERENCES
        return message

    def _is_in_loop(self, frame: FrameType) -> bool:
        """Looked up in the code for the first item, and when another place asks."""
        if self._code is not frame.f_code or self._at != frame.f_lasti:
            self._code, self._at = frame.f_code, frame.f_lasti
            self._in_loop = _is_for_loop(frame) and not collects(frame.f_code, frame.f_lasti)
        return self._in_loop

    def _end(self) -> None:
        self._end_last()
        finish(self._owner)

    def __del__(self) -> None:
        self._end_last()

    def _end_last(self) -> None:
        handling, self._handling = self._handling, None
        if handling is not None:
            if self._in_loop and handling.used and self._code is not None:
                _working.add((self._code, self._at))
            handling.end()


def unwalked(messages: Any) -> Iterator[Any]:
    """The messages of a batch, none of them being handled."""
    return list.__iter__(messages) if isinstance(messages, list) else iter(messages)


class AsyncWalk(Generic[T]):
    """The same for `async for`."""

    __slots__ = ("_begun", "_fetch", "_handling", "_owner", "_site", "_source")

    def __init__(
        self,
        owner: object,
        source: Source,
        fetch: Callable[[], Awaitable[T]],
        begun: Callable[[T], Awaitable[None]] | None = None,
    ) -> None:
        self._owner = owner
        self._source = source
        self._fetch = fetch
        self._begun = begun  # awaited at the beginning of each handling
        self._handling: Handling | None = None
        self._site: tuple[CodeType, int] | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        return AsyncWalk(self._owner, self._source, self._fetch, self._begun)  # see Walk.__iter__

    async def __anext__(self) -> T:
        self._end_last()
        finish(self._owner)
        frame = sys._getframe(1)
        self._site = (frame.f_code, frame.f_lasti)
        del frame
        message = await self._fetch()
        if (held := handled()) is not None and held.message is message:
            self._handling = held  # by a `getone` of the program's own, which has called the library's
        elif not suppressed() and not self._source.is_no_message(message):
            handling = self._handling = Handling(self._owner, self._source, message)
            handling.by_variable = True
            handling.used = self._site in _working
            handling.begin(watched=not handling.used)
            handling.references = sys.getrefcount(handling.message)
            if self._begun is not None:
                await self._begun(message)
        return message

    def __del__(self) -> None:
        self._end_last()

    def _end_last(self) -> None:
        handling, self._handling = self._handling, None
        if handling is not None:
            if handling.used and self._site is not None:
                _working.add(self._site)
            handling.end()


class Batch(list[T]):
    """The list of messages that a consumer handed over; each gets a handling of its own while it is walked."""

    __slots__ = ("_source",)

    def __init__(self, messages: Sequence[T], source: Source) -> None:
        super().__init__(messages)
        self._source = source

    def __iter__(self) -> Iterator[T]:
        plain = list.__iter__(self)
        return plain if is_library(sys._getframe(1)) else Walk(self, self._source, plain.__next__)

    @overload
    def __getitem__(self, at: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: Any) -> Any:
        found = list.__getitem__(self, at)
        return Batch(found, self._source) if isinstance(at, slice) else found

    def copy(self) -> list[T]:
        return self[:]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return list, (list(list.__iter__(self)),)


# ---------------------------------------------------------------------------------------------------- said by the program


class Processing:
    """`with process(record) as span:` - the scope of one message, or of several that are handled as one.

    Where the message is being handled already (`install()` saw it being taken), its span is used and not a second one made.
    """

    __slots__ = ("_handling", "_message", "_ours", "_source")

    def __init__(self, source: Source, message: Any) -> None:
        self._source = source
        self._message = message
        self._ours = False
        self._handling: Handling | None = None

    def __enter__(self) -> Span:
        if suppressed():
            return INVALID_SPAN
        _settle()
        held = handled()
        self._ours = held is None or not held.is_of(self._message)
        if self._ours:
            held = Handling(self, self._source, self._message)
            held.begin()
        self._handling = held
        return held.span if held is not None and held.span is not None else get_current_span()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handling, self._handling = self._handling, None
        if handling is None:
            return
        if error is not None and handling.span is not None:
            record(handling.span, error)
        if self._ours:
            handling.used = True
            handling.end()


# ------------------------------------------------------------------------------------------------------------- wait_for

_adopted: ContextVar[list[tuple[Handling, bool]] | None] = ContextVar("tracefill_adopted", default=None)


_patches = Patches()
_in_need: set[str] = set()


def patch_wait_for(client: str) -> None:
    """For clients of asyncio: `await asyncio.wait_for(consumer.getone(), 1)` gives the message to the one who awaits."""
    import asyncio

    _in_need.add(client)
    if sys.version_info < (3, 12):
        for module in (asyncio, asyncio.tasks):
            _patches.wrap(module, "wait_for", _adopting)


def unpatch_wait_for(client: str) -> None:
    _in_need.discard(client)
    if not _in_need:
        _patches.undo()


def _adopting(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """asyncio.wait_for before Python 3.12, which runs what it waits for in a task of its own: a message that was taken there
    is handled by whoever waited."""

    async def wait_for(fut: Any, timeout: Any, **options: Any) -> Any:
        taken: list[tuple[Handling, bool]] = []
        token = _adopted.set(taken)
        try:
            result = await original(fut, timeout, **options)
        finally:
            _adopted.reset(token)
        frame = taker(sys._getframe(1))
        for handling, lazily in taken:
            if frame is not None and handling.message is result:
                handling.begin(lazily=lazily, watched=True)
                hold(handling, frame)
        return result

    return wait_for


# ------------------------------------------------------------------------------------------- retries and dead letters


class Republished(NamedTuple):
    attempt: int
    original: str

    def headers(self) -> dict[str, str]:
        return {ATTEMPT_HEADER: str(self.attempt), ORIGINAL_HEADER: self.original}


def republished(destination: str, body: Any, headers: Any) -> Republished | None:
    """Attempt number and first destination, when the message that is being handled is sent once more.

    That is: its own body, to where it came from or to a place named after it (`orders` -> `orders.retry`, `orders-dlq`).
    None where it is another message, or where the program counts by itself.
    """
    held = handled()
    if held is None or held.is_batch:
        return None
    source, message = held.source, held.message
    mine = source.body(message)
    if body is not mine and not (isinstance(body, (bytes, str)) and body == mine):
        return None
    before = source.headers(message)
    original = original_of(before) or source.destination(message)
    if not any(name in destination for name in (original, *source.names(message))):
        return None
    if (attempt_of(headers) or 1) > (attempt_of(before) or 1):
        return None  # it counts by itself
    is_last = any(word in destination.lower() for word in ("dlq", "dlt", "dead"))
    return Republished((attempt_of(before) or 1) + (not is_last), original)
