"""The compiled core: types and documentation of src/_codec.pyx. Users import these names from `tracefill` and its modules."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Literal, ParamSpec, SupportsIndex, TypeVar, final, overload

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, TraceState

_P = ParamSpec("_P")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)

Decision = Literal["defer", "deny", "accept", "debug"]

DENIED: Final[int]
SUPPRESSED: Final[int]
DEBUG_KEY: Final[str]
REQUEST_ID_KEY: Final[str]
TAGS_KEY: Final[str]
FORMAT_FIELDS: Final[dict[str, tuple[str, ...]]]

class TracefillError(Exception):
    """The parent of every exception of tracefill's own."""

class SnapshotReleased(TracefillError):
    """A Snapshot was used, or released again, after it had been given back to its pool."""

# Snapshots and their pool

@final
class Snapshot:
    """One trace position, taken from a header or from the current context.

    The numbers of a snapshot that was taken from a context are read when somebody asks for them. Use after `release()` raises
    SnapshotReleased; a snapshot that is dropped returns to its pool by itself.

    >>> from tracefill.formats import TRACECONTEXT
    >>> s = TRACECONTEXT.decode("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1")
    >>> s
    <Snapshot 4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7 accept>
    >>> s.to_json()
    '{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00f067aa0ba902b7","c":"1","w":"vendor=1"}'
    """

    def __new__(
        cls,
        trace_id: int = 0,
        span_id: int = 0,
        *,
        parent_id: int | None = None,
        flags: int | None = None,
        decision: Decision | None = None,
        trace_state: str | TraceState | None = None,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        baggage: Mapping[str, str] | None = None,
    ) -> Snapshot: ...
    @property
    def trace_id(self) -> int:
        """128 bits; 0 when there is none."""
    @property
    def span_id(self) -> int:
        """64 bits; 0 when there is none."""
    @property
    def parent_id(self) -> int | None:
        """64 bits, B3 only."""
    @property
    def flags(self) -> int:
        """The W3C flags as they came: bit 0 sampled, bit 1 random."""
    @property
    def decision(self) -> Decision:
        """What was decided about sampling: "defer" (nobody did), "deny", "accept", "debug" (accept, and sticky)."""
    @property
    def trace_state(self) -> TraceState | None:
        """The W3C tracestate; None when there is none."""
    @property
    def request_id(self) -> str | None:
        """The request id of the gateway; None when there is none."""
    @property
    def tags(self) -> dict[str, str]:
        """A copy of the business tags."""
    @property
    def baggage(self) -> dict[str, str]:
        """A copy of the W3C baggage."""
    @property
    def context(self) -> Context | None:
        """The Context it was taken from; None when it was taken from a header."""
    @property
    def is_valid(self) -> bool:
        """True when neither id is zero."""
    @property
    def released(self) -> bool:
        """True after `release()`; the one question that a released snapshot answers."""
    def to_context(self, base: Context | None = None) -> Context:
        """The Context it was taken from, or one made of what it holds, on top of `base` when that is given."""
    def attach(self) -> Any:
        """Makes its context current, and gives the token for `opentelemetry.context.detach`."""
    def run(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """`fn(*args, **kwargs)` in its context; afterwards the context is what it was before."""
    def release(self) -> None:
        """Gives it back to its pool and lets go of its context. A second time raises SnapshotReleased."""
    def to_bytes(self) -> bytes:
        """29 bytes: OpenCensus' binary layout, as in `grpc-trace-bin`. Ids and flags only."""
    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> Snapshot | None:
        """The inverse of `to_bytes`; None when the bytes are not of that layout."""
    def to_json(self) -> str:
        """One line of JSON: `t` trace id, `s` span id, `p` parent id, `c` decision ("0", "1", "d"; left out for defer), `f` flags
        (where they are more than the decision), `w` tracestate, `r` request id, `g` tags, `b` baggage; what is not there is left out."""
    @staticmethod
    def from_json(text: str | bytes | dict[str, Any]) -> Snapshot | None:
        """The inverse of `to_json`, also of the parsed object; None when it is not of that form."""
    def __enter__(self) -> Snapshot: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

class PoolStats(tuple[int, int, int, int, int, int]):
    """capacity, idle, in_use, hits, misses, overflows: by attribute, by name in brackets, or as a tuple."""

    @property
    def capacity(self) -> int:
        """How many given-back snapshots are kept at most."""
    @property
    def idle(self) -> int:
        """How many are kept now."""
    @property
    def in_use(self) -> int:
        """Acquired, and neither released nor dropped yet."""
    @property
    def hits(self) -> int:
        """Acquired without an allocation."""
    @property
    def misses(self) -> int:
        """Acquired with an allocation."""
    @property
    def overflows(self) -> int:
        """Given back to a full pool, and freed."""
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, key: str, /) -> int: ...
    def _asdict(self) -> dict[str, int]: ...

@final
class SnapshotPool:
    """A free list of snapshots: `capacity` of those that were given back are kept for the next ones.

    Raises ValueError for a negative capacity, TracefillError for the 1,024th pool at a time.

    >>> pool = SnapshotPool(8)
    >>> with pool.acquire() as s:
    ...     pool.stats().in_use
    1
    >>> pool.stats()["in_use"]
    0
    """

    def __new__(cls, capacity: int = 1024) -> SnapshotPool: ...
    def acquire(self, context: Context | None = None) -> Snapshot:
        """A snapshot of the context (default: of now)."""
    def stats(self) -> PoolStats: ...
    def leaks(self) -> list[str]:
        """Where those in use were acquired, `file:line` each; needs TRACEFILL_DEBUG=1."""

def snapshot(context: Context | None = None) -> Snapshot:
    """A snapshot of the context (default: of now), acquired from the default pool.

    >>> with snapshot() as here:
    ...     here.is_valid
    False
    """

def pool_stats() -> PoolStats: ...
def pool_leaks() -> list[str]: ...
def set_debugging(on: bool) -> None: ...
def in_forked_child() -> None: ...

# Carriers and contexts

def extract(carrier: Any, context: Context | None = None) -> Context:
    """The Context that the headers of a carrier describe, on top of `context` when that is given.

    The carrier may have any known shape: a dict (names in any case), pairs of text or bytes, a WSGI environ, an ASGI scope, any
    mapping, an object with `headers`. Without a valid header the given context comes back, or an empty one. Raises TypeError
    for what has none of these shapes; nothing that headers hold raises. Follows OpenTelemetry's global propagator; where that
    is stock's default, all formats of tracefill are read.

    >>> len(extract({"b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"}))
    1
    >>> len(extract({"b3": "nonsense"}))
    0
    """

def inject(carrier: Any, context: Context | None = None) -> None:
    """Writes the position of the context (default: of now) into a carrier, in place of what it had; nothing when there is none."""

def current_context() -> Context:
    """OpenTelemetry's current Context."""

def current_value(key: str) -> Any:
    """What the current Context holds under this key; None when it holds nothing."""

def make_current(context: Context) -> None:
    """Makes the context current for good: for places that nobody tells when the time of a context ends, only when the next begins."""

def set_requests_say_more(on: bool) -> None:
    """Business tags are declared: a request is looked at for them, sampled or not."""

class Gate:
    """Whether a span begun now would be recorded, for one tracer of the global TracerProvider."""

    def records(self, context: Context | None = None) -> bool:
        """False when a span begun in this context (default: of now) is sure to be dropped, or instrumentation is suppressed."""

    def enter(self, carrier: MutableMapping[str, Any], key: str) -> Scope | Context | None:
        """The first step of a server's request, in one: what its carrier (an environ, an ASGI scope) holds, and what follows.

        None where something is current, the carrier has `key` or is no dict, or tags are declared: that wants a closer look.
        A Scope that is open where no span of the request would be recorded: there is nothing left to do but to close it. Else the Context.
        """

    def meet(self, provider: object) -> bool:
        """To be overridden: called for each provider that is new; True when its sampler follows a parent that says no."""

def state_of(context: Context | None = None) -> int:
    """DENIED (the span is not sampled) and SUPPRESSED (instrumentation is asked to keep quiet) bits of a context."""

class SpanStart:
    """What the `start_span` of an SDK tracer does; made by tracefill.sdk_spans."""

    def __init__(self, tracer: Any, parts: Any) -> None: ...
    def __call__(
        self,
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link],
        start_time_ns: int | None,
    ) -> Span:
        """The span, which is started; not recording where the sampler says so."""

    def unstarted(self) -> Span:
        """A span as it is before it starts, to be compared."""

def find_header(headers: object, name: bytes) -> bytes | None:
    """The value of a header of an ASGI scope (names in lower case), its lines joined by commas; None when there is none.

    >>> from tracefill._codec import find_header
    >>> find_header([(b"host", b"shop.example"), (b"accept", b"*/*")], b"host")
    b'shop.example'
    """

def with_span(context: Context | None, span: Span) -> Context:
    """The context (None: of now) with this span as its current span."""

def set_type_attribute(owner: type, name: str, value: object) -> None:
    """setattr on a class, also on one of C that forbids it."""

def delete_type_attribute(owner: type, name: str) -> None:
    """delattr on a class, also on one of C that forbids it."""

@final
class Scope:
    """The time in which a context is current: a context manager. `with scope(context): ...`"""

    def __enter__(self) -> Context: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def close(self) -> None:
        """Puts back what was current before; closing twice changes nothing."""

def enter_scope(context: Context) -> Scope:
    """A scope that is open already, for who closes it in a `finally`: the cheaper form, on paths that are hot."""

def scope(context: Context) -> Scope:
    """A context manager: the context is current inside; afterwards what was current before, whatever happened in between."""

@final
class Bound(Generic[_P, _R_co]):
    """A callable that runs a function in the context of its snapshot, however often and wherever it is called."""

    __wrapped__: Callable[_P, _R_co]
    __name__: str
    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...

def bind(fn: Callable[_P, _R_co], snapshot: Snapshot | None = None) -> Bound[_P, _R_co]:
    """A callable that runs `fn` in the context of now (or of the snapshot that is given), in whatever thread it is called.

    >>> bind(len)("four")
    4
    """

# Formats

class _Codec:
    def __init__(self, name: str) -> None: ...
    def decode(self, *values: str | bytes | None) -> Snapshot | None: ...
    def encode(self, snapshot: Snapshot) -> tuple[str | bytes | None, ...]: ...
    def explain(self, *values: str | bytes | None) -> str | None: ...

def decode_tracecontext(
    traceparent: str | bytes | None = None, tracestate: str | bytes | None = None
) -> Snapshot | None: ...
def decode_b3(b3: str | bytes | None = None) -> Snapshot | None: ...
def decode_baggage(*values: str | bytes | None) -> dict[str, str]: ...
def encode_baggage(members: Mapping[str, object]) -> str | None: ...
def percent_encode(text: str) -> str: ...

class BaggageValue(str):
    """A baggage value that came with properties: reads `value;property`, and is sent on as it came."""

    coded: str

def counters() -> dict[str, Any]:
    """What the core has seen in this process: {"extracted": {format: n}, "missing": n, "unread": {format: n},
    "malformed": {(format, reason): n}}.

    `missing` are the carriers in which a propagator found nothing of what it reads, `unread` those of them with a header of a format
    that it does not read: all of the first 1,024 are looked through, later one in 64, which counts for 64.
    """

def hex_implementations() -> dict[str, tuple[Callable[[bytes], int | None], Callable[[int], bytes]]]: ...

# Plug-ins

class Propagator:
    """The formats it reads, in order, and those it writes; the parent of every class in propagators.py."""

    def __init__(
        self,
        extract: Iterable[str] | str = (),
        inject: Iterable[str] | str = (),
        baggage: bool = False,
        defer: str = "accept",
    ) -> None: ...
    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context: ...
    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None: ...
    @property
    def fields(self) -> set[str]: ...

def set_default_propagator(propagator: Propagator) -> None: ...
def set_recogniser(function: Callable[[Any], Sequence[tuple[Any, Any]]]) -> None: ...

class RandomIds:
    def generate_span_id(self) -> int: ...
    def generate_trace_id(self) -> int: ...
    def is_trace_id_random(self) -> bool: ...

class TimeOrderedIds(RandomIds): ...

def forget_seeds() -> None: ...
def generators_hold() -> bool: ...
def variables_here() -> object: ...

class RuntimeContext:
    """OpenTelemetry's current context on a contextvar, from C: `OTEL_PYTHON_CONTEXT=tracefill`.

    Two differences to the stock one: a token that is given back in another thread, task or order restores instead of logging an
    error; and a context attached inside a generator is current for the generator's own code only.
    """

    def attach(self, context: Context) -> Any: ...
    def get_current(self) -> Context: ...
    def detach(self, token: Any) -> None: ...
