"""The time in which a message is handled, for libraries that hand messages over and never hear of them again.

`for record in consumer:`, `message = consumer.poll()`, `for message in consumer.consume(100):` - a program takes a message,
handles it and takes the next, and nobody says when the handling ends. So it ends with the first of

- the next take: of the same consumer, or in the same function, or the next item of the same loop or batch;
- the end of the loop: it is used up, left by `break` or by an exception;
- the end of the function that took the message and worked under it. One that only fetches (`return message.value()`) hands
  the handling on to its caller;
- the consumer's `close` or `unsubscribe`.

Then what was current before is current again. The span ends when nobody works under it any more: work that was handed to
a pool, a task or a queue carries the context, and the context holds the span; after half a minute it ends in any case.

A batch (`poll()` of kafka-python, `consume(n)`, `getmany()`) is current as a whole until it is walked; its span, which has a
link to each message's sender, is made when somebody looks for it. Walking it gives each message a handling of its own.
"""

from __future__ import annotations

import atexit
import gc
import opcode
import sys
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar, overload

from opentelemetry.context import Context, create_key
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span

from tracefill._codec import current_context, scope
from tracefill.messages.message_spans import (
    ATTEMPT_HEADER,
    ORIGINAL_HEADER,
    SPAN_KEY,
    Source,
    attempt_of,
    original_of,
)
from tracefill.spans import record, suppressed

__all__ = [
    "AsyncWalk",
    "Batch",
    "Handling",
    "Processing",
    "Walk",
    "finish",
    "handled",
    "is_library",
    "republish_headers",
    "take",
    "taker",
    "wait_for_adopting",
]

T = TypeVar("T")

_KEY = create_key("tracefill-handling")
_LINGER_NS = 30 * 10**9


def handled() -> Handling | None:
    """The handling that is going on here; None when no message is being handled."""
    found = current_context().get(_KEY)
    return found if isinstance(found, Handling) else None


class Handling:
    """One message, or one batch, being handled. `owner`: whose next take ends it (a consumer, a batch)."""

    __slots__ = ("__weakref__", "before", "closed_ns", "message", "owner", "pending", "source", "span", "used")

    def __init__(self, owner: object, source: Source, message: Any) -> None:
        self.owner = owner
        self.source = source
        self.message = message
        self.span: Span | None = None
        self.before = current_context()
        self.closed_ns = 0
        self.used = False  # somebody has looked for the current span
        self.pending = False  # the span is made when somebody looks

    def begin(self, *, lazily: bool = False, watched: bool = False) -> None:
        """Makes it current: at once, or its span when somebody looks; `watched` notes whether somebody does."""
        _settle()
        if lazily:
            self.pending = True
            made: Context = _Watched({_KEY: self})
        else:
            context, self.span = self._start()
            made = (_Watched if watched else Context)({**context, _KEY: self})
        scope(made).__enter__()

    def _start(self) -> tuple[Context, Span | None]:
        if isinstance(self.message, (list, _Several)):
            return self.source.start_batch(self.message)
        return self.source.start(self.message)

    def look(self, context: Context) -> None:
        """Somebody looks into the context of this handling."""
        self.used = True
        if self.pending:
            self.pending = False
            started, self.span = self._start()
            dict.update(context, started)

    def end(self) -> None:
        """Puts back what was current before; the span ends with the last that refers to this handling."""
        if self.closed_ns:
            return
        self.closed_ns = time.time_ns()
        if _is_within(self):
            scope(_open(self.before)).__enter__()
        if self.span is not None:
            while _lingering and _lingering[-1]() is None:
                _lingering.pop()
            _lingering.append(weakref.ref(self))

    def end_span(self, end_time_ns: int | None = None) -> None:
        span, self.span = self.span, None
        if span is not None:
            span.end(end_time_ns)

    def __del__(self) -> None:
        # The garbage collector may run in the middle of anything, a span processor that holds its lock included.
        if self.span is None:
            return
        if _collecting:
            _to_end.append((self.span, time.time_ns()))
        else:
            self.end_span()


class _Watched(Context):
    """The context of a handling that has to know whether somebody looks for its span."""

    def get(self, key: str, default: Any = None) -> Any:
        if key is not _KEY:
            dict.__getitem__(self, _KEY).look(self)
        return dict.get(self, key, default)

    def copy(self) -> dict[str, object]:
        dict.__getitem__(self, _KEY).look(self)
        return dict.copy(self)


class _Several(tuple[Any, ...]):
    """Messages that are handled as one."""

    __slots__ = ()


def _is_within(handling: Handling) -> bool:
    """True when what is current here was made inside of this handling: only then is it ours to put back."""
    at = handled()
    while at is not None and at is not handling:
        found = at.before.get(_KEY)
        at = found if isinstance(found, Handling) else None
    return at is handling


def _open(context: Context) -> Context:
    """The context, or what was current before it where it is that of a handling that has ended."""
    while (found := context.get(_KEY)) is not None and isinstance(found, Handling) and found.closed_ns:
        context = found.before
    return context


# ------------------------------------------------------------------------------------------------------- spans that linger

_lingering: deque[weakref.ref[Handling]] = deque()
_to_end: deque[tuple[Span, int]] = deque()
_collecting = False
_watching = False


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
    while _to_end:
        span, ended_ns = _to_end.popleft()
        span.end(ended_ns)
    while _lingering:
        handling = _lingering[0]()
        if handling is not None:
            if handling.closed_ns + _LINGER_NS > time.time_ns():
                return
            handling.end_span(handling.closed_ns)
        _lingering.popleft()


def _end_all() -> None:
    while (at := handled()) is not None:
        at.end()
        at.end_span()
    for reference in _lingering:
        handling = reference()
        if handling is not None:
            handling.end_span()
    while _to_end:
        span, ended_ns = _to_end.popleft()
        span.end(ended_ns)


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

    __slots__ = ("caller", "handling", "inner")

    def __init__(self, handling: Handling, caller: int, inner: Any) -> None:
        self.handling: Handling | None = handling
        self.caller = caller
        self.inner = inner

    def __call__(self, frame: FrameType, event: str, argument: Any) -> _Guard:
        if self.inner is not None:
            self.inner = self.inner(frame, event, argument)
        return self

    def __del__(self) -> None:
        handling = self.handling
        if handling is None or handling.closed_ns:
            return
        # A function that fetched and did not work under what it fetched: its caller will.
        frame = None if handling.used else sys._getframe(1)
        if frame is not None and id(frame) == self.caller and (caller := taker(frame)) is not None:
            hold(handling, caller)
        else:
            handling.end()


def hold(handling: Handling, frame: FrameType) -> None:
    """The handling lasts until this function is left, or takes the next message."""
    guard = frame.f_trace
    caller = id(frame.f_back)
    if isinstance(guard, _Guard):
        previous, guard.handling, guard.caller = guard.handling, handling, caller
        if previous is not None:
            previous.end()
    else:
        frame.f_trace = _Guard(handling, caller, guard)


def finish(owner: object, frame: FrameType | None = None) -> None:
    """Before a take: what this owner, or this function, has taken before is handled."""
    while (at := handled()) is not None and at.owner is owner:
        at.end()
    if frame is not None and isinstance(guard := frame.f_trace, _Guard):
        previous, guard.handling = guard.handling, None
        if previous is not None:
            previous.end()
    _settle()


def take(owner: object, source: Source, message: Any, frame: FrameType | None, *, lazily: bool = False) -> None:
    """A message, or a batch (`lazily`), that the owner has handed to the function of this frame (see `taker`).

    Without a frame it is somebody in another task who asked: see `wait_for_adopting`.
    """
    if suppressed():
        return
    handling = Handling(owner, source, message)
    if frame is not None:
        handling.begin(lazily=lazily, watched=True)
        hold(handling, frame)
    elif (adopted := _adopted.get()) is not None:
        adopted.append((handling, lazily))


# ----------------------------------------------------------------------------------------------------------- loops


_FOR_ITER = opcode.opmap["FOR_ITER"]


def _is_for_loop(frame: FrameType) -> bool:
    """True when the frame stands at the head of a `for`, and does not ask by `next()` or through `list()`."""
    return frame.f_code.co_code[frame.f_lasti] == _FOR_ITER


class Walk(Generic[T]):
    """An iterator whose items are handled one after the other, each until the next is asked for or the loop is left."""

    __slots__ = ("_fetch", "_handling", "_owner", "_source", "_surely")

    def __init__(self, owner: object, source: Source, fetch: Callable[[], T], *, surely: bool = False) -> None:
        self._owner = owner
        self._source = source
        self._fetch = fetch
        self._surely = surely  # a message that was fetched is handled, whoever asked for it
        self._handling: Handling | None = None

    def __iter__(self) -> Walk[T]:
        return self

    def __next__(self) -> T:
        self._end()
        message = self._fetch()
        if suppressed() or self._source.is_no_message(message):
            return message
        frame = sys._getframe(1)
        in_loop = _is_for_loop(frame)
        handling = Handling(self._owner, self._source, message)
        if self._surely and not in_loop and (caller := taker(frame)) is not None:
            handling.begin(watched=True)
            hold(handling, caller)
        else:
            # list(batch), sorted(batch): a span only if somebody works under it.
            handling.begin(lazily=not (in_loop or self._surely))
            self._handling = handling
        return message

    def _end(self) -> None:
        handling, self._handling = self._handling, None
        if handling is not None:
            handling.end()
        finish(self._owner)

    def __del__(self) -> None:
        handling, self._handling = self._handling, None
        if handling is not None:
            handling.end()


class AsyncWalk(Generic[T]):
    """The same for `async for`."""

    __slots__ = ("_fetch", "_handling", "_owner", "_source")

    def __init__(self, owner: object, source: Source, fetch: Callable[[], Awaitable[T]]) -> None:
        self._owner = owner
        self._source = source
        self._fetch = fetch
        self._handling: Handling | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        self.__del__()
        finish(self._owner)
        message = await self._fetch()
        if not suppressed() and not self._source.is_no_message(message):
            self._handling = Handling(self._owner, self._source, message)
            self._handling.begin()
        return message

    def __del__(self) -> None:
        handling, self._handling = self._handling, None
        if handling is not None:
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
        return list, (self[:].as_list(),) if isinstance(self, Batch) else ()

    def as_list(self) -> list[T]:
        return list(list.__iter__(self))


# ---------------------------------------------------------------------------------------------------- said by the program


class Processing:
    """`with process(record) as span:` - the scope of one message, or of several that are handled as one.

    Where the message is being handled already (`install()` saw it being taken), its span is used and not a second one made.
    """

    __slots__ = ("_handling", "_ours", "_source", "_message")

    def __init__(self, source: Source, message: Any) -> None:
        self._source = source
        self._message = message
        self._ours = False
        self._handling: Handling | None = None

    def __enter__(self) -> Span:
        held = handled()
        self._ours = held is None or held.message is not self._message
        if suppressed():
            return INVALID_SPAN
        if self._ours:
            held = Handling(self, self._source, self._message)
            held.begin()
        self._handling = held
        return get_current_span()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handling, self._handling = self._handling, None
        if handling is None:
            return
        if error is not None and handling.span is not None:
            record(handling.span, error)
        if self._ours:
            handling.end()


def several(messages: Sequence[Any]) -> Any:
    """Messages to be handled as one."""
    return messages if isinstance(messages, Batch) else _Several(messages)


# ------------------------------------------------------------------------------------------------------------- wait_for

_adopted: ContextVar[list[tuple[Handling, bool]] | None] = ContextVar("tracefill_adopted", default=None)


def wait_for_adopting(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
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
            if frame is not None:
                handling.before = current_context()
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


def republish_headers(destination: str, body: Any, headers: Any) -> Republished | None:
    """Attempt number and first destination, when the message that is being handled is sent once more.

    That is: its own body, to where it came from or to a place named after it (`orders` -> `orders.retry`, `orders-dlq`).
    None where it is another message, or where the program counts by itself.
    """
    held = handled()
    if held is None or isinstance(held.message, (list, _Several)):
        return None
    source, message = held.source, held.message
    mine = source.body(message)
    if body is not mine and not (isinstance(body, (bytes, str)) and body == mine):
        return None
    before = source.headers(message)
    original = original_of(before) or source.destination(message)
    if original not in destination or (attempt_of(headers) or 1) > (attempt_of(before) or 1):
        return None
    is_last = any(word in destination.lower() for word in ("dlq", "dlt", "dead"))
    return Republished((attempt_of(before) or 1) + (not is_last), original)
