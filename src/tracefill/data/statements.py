"""The statement on its chain: what a database call is named, what it says, and in which of two forms.

| form | what a statement becomes |
|---|---|
| "span" (default) | a CLIENT span by the stable database conventions |
| "event" | a `db.query` event on the current span, with the duration; nothing when no span is recorded |

`configure(form="event")` chooses for the process. The text is what the program wrote, its literals masked, its length bounded;
parameters are never recorded. A statement below another one's span (an ORM's over its driver, contrib's over ours) gets no
second one.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY as _SUPPRESS  # no public name gives it
from opentelemetry.context import Context

from tracefill import _codec
from tracefill.context import current
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer, record, suppressed

__all__ = [
    "Described",
    "Statement",
    "begin",
    "called",
    "configure",
    "lasting",
    "masked",
    "quiet",
    "quietly",
    "scope",
    "summary",
    "traced",
    "traced_async",
]

TEXT_LENGTH = 2048
SUMMARY_LENGTH = 255  # the conventions' limit
FORMS = ("span", "event")

Where = Callable[[Any], dict[str, Any]]
# What adds a comment to the arguments of a cursor's method: see `comments.py`.
Comments = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]

_NOTHING: AbstractContextManager[None] = nullcontext()

_form = "span"
_mask = True

# What may not be shown, or hides it: a comment, a string (one that was cut off ends with the text), a number that is no part of
# a name or a placeholder. Strings are read as the database reads them, or the end of one would be taken for the next one's
# beginning: MySQL's have backslashes and double quotes.
_NUMBER = r"(?<![\w$@:%?])(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\w)"
_STANDARD = re.compile(
    r"(?P<comment>/\*.*?(?:\*/|\Z)|--[^\n]*)"
    r"|(?P<name>\"(?:[^\"]|\"\")*(?:\"|\Z)|`[^`]*(?:`|\Z))"
    r"|\b[eE]'(?:[^'\\]|''|\\.)*(?:'|\\?\Z)"
    r"|'(?:[^']|'')*(?:'|\Z)"
    r"|(?<!\w)\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)"
    rf"|{_NUMBER}",
    re.DOTALL,
)
_MYSQL = re.compile(
    r"(?P<comment>/\*.*?(?:\*/|\Z)|--(?=\s|\Z)[^\n]*|\#[^\n]*)"
    r"|(?P<name>`[^`]*(?:`|\Z))"
    r"|'(?:[^'\\]|''|\\.)*(?:'|\\?\Z)"
    r"|\"(?:[^\"\\]|\"\"|\\.)*(?:\"|\\?\Z)"
    rf"|{_NUMBER}",
    re.DOTALL,
)
_OPERATION = re.compile(r"[\s(]*([A-Za-z]+)")
_TARGET = re.compile(
    r"(?<!distinct )\b(?:from|into|update|table|join|copy|call)\s+(?:if\s+(?:not\s+)?exists\s+|only\s+)?([\w.$\"`\[\]]+)",
    re.IGNORECASE,
)
# Functions whose arguments are told apart by FROM: extract(year from created_at)
_FROM_IN_FUNCTION = re.compile(r"\b(?:extract|trim|substring|overlay)\s*\([^()]*\)", re.IGNORECASE)


def configure(*, form: str = "span", mask: bool = True) -> None:
    """Chooses "span" or "event" for all databases of this process, and whether the literals of a statement's text are masked.

    Raises ValueError for another form.

    >>> configure(form="event")
    >>> configure()
    """
    global _form, _mask
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    _form = form
    _mask = mask


def masked(text: str, system: str = "") -> str:
    """The statement with `?` in the place of its literals, comments left out, at most 2048 characters.

    >>> masked("select * from users where name = 'O''Brien' and age > 41 -- secret")
    'select * from users where name = ? and age > ?'
    """
    return _read(text[: 2 * TEXT_LENGTH], system).text


def summary(text: str, system: str = "") -> str:
    """The operation and the table of a statement, as far as they can be told; empty where they cannot.

    >>> summary("insert into orders values (?, ?)")
    'INSERT orders'
    """
    return _read(text[: 2 * TEXT_LENGTH], system).summary


class Described(NamedTuple):
    """What is shown of a statement. A database whose commands are no SQL describes them itself."""

    text: str
    summary: str
    attributes: Mapping[str, str | int] = MappingProxyType({})


@functools.lru_cache(1024)
def _read(text: str, system: str) -> Described:
    literals = _MYSQL if system in ("mysql", "mariadb") else _STANDARD
    without = literals.sub(_replacement, text).strip()
    operation = _OPERATION.match(without)
    target = _TARGET.search(_FROM_IN_FUNCTION.sub("", without[:TEXT_LENGTH]))
    words = [operation[1].upper() if operation else "", target[1].strip('"`[]') if target else ""]
    return Described(without[:TEXT_LENGTH], " ".join(filter(None, words))[:SUMMARY_LENGTH])


def _replacement(found: re.Match[str]) -> str:
    if found["comment"]:
        return " "  # as the database reads it: a/**/b are two words
    return found["name"] or "?"


def traced(
    tracer: Tracer, system: str, where: Where | None = None, comments: Comments | None = None
) -> Callable[[Any], Callable[..., Any]]:
    """What makes a traced method of a cursor's method: for `Patches.wrap`. `where(cursor)` tells what is known of the server."""

    def make(original: Any) -> Callable[..., Any]:
        def statement(self: Any, *arguments: Any, **named: Any) -> Any:
            with scope(tracer, system, _sql(arguments, named), where, self):
                if comments is not None:
                    arguments, named = comments(self, arguments, named)
                return original(self, *arguments, **named)

        return statement

    return make


def traced_async(
    tracer: Tracer, system: str, where: Where | None = None, comments: Comments | None = None
) -> Callable[[Any], Callable[..., Any]]:
    """The same for a coroutine method."""

    def make(original: Any) -> Callable[..., Any]:
        async def statement(self: Any, *arguments: Any, **named: Any) -> Any:
            with scope(tracer, system, _sql(arguments, named), where, self):
                if comments is not None:
                    arguments, named = comments(self, arguments, named)
                return await original(self, *arguments, **named)

        return statement

    return make


def called(tracer: Tracer, system: str, where: Where | None = None) -> Callable[[Any], Callable[..., Any]]:
    """The same for a method that calls a stored procedure."""

    def make(original: Any) -> Callable[..., Any]:
        def callproc(self: Any, procname: Any, *arguments: Any, **named: Any) -> Any:
            with scope(tracer, system, f"CALL {procname}", where, self):
                return original(self, procname, *arguments, **named)

        return callproc

    return make


def _sql(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if arguments:
        return arguments[0]
    return next((named[name] for name in ("query", "sql", "operation", "procname", "command") if name in named), "")


def scope(
    tracer: Tracer, system: str, sql: object, where: Where | None = None, cursor: Any = None
) -> AbstractContextManager[Any]:
    """The time in which a statement runs: a Statement, or None where an outer layer has one already.

    `sql` is its text, or a function that returns a Described; `where(cursor)` tells what is known of the server.
    """
    return begin(tracer, system, sql, where, cursor) or _NOTHING


def begin(
    tracer: Tracer,
    system: str,
    sql: object,
    where: Where | None = None,
    cursor: Any = None,
    context: Context | None = None,
) -> Statement | None:
    """A statement that begins here; None where an outer layer has it already, or nobody records it."""
    if suppressed(context) if _form == "event" else not tracer.records(context):
        return None
    above = trace.get_current_span(context)
    if _is_statement(above) or (_form == "event" and not above.is_recording()):
        return None
    context = current() if context is None else context
    return Statement(tracer, system, _described(sql, system, cursor), where, cursor, context)


@contextmanager
def lasting(
    tracer: Tracer, system: str, sql: object, where: Where | None, cursor: Any, context: Context
) -> Iterator[None]:
    """A statement of this context from the beginning of the block to its end, but never current: the program works inside."""
    statement = begin(tracer, system, sql, where, cursor, context)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        if statement is not None:
            statement.end(error)


class Statement:
    """One statement: current in a `with`; or ended by `end`, and never current. `rows`: how many it returned, when known."""

    __slots__ = ("_attributes", "_begun", "_context", "_cursor", "_scope", "_span", "rows")

    def __init__(
        self, tracer: Tracer, system: str, described: Described, where: Where | None, cursor: Any, context: Context
    ) -> None:
        attributes = {"db.system.name": system, "db.query.text": described.text, **described.attributes}
        if described.summary:
            attributes["db.query.summary"] = described.summary
        attributes.update(_told(where, cursor))
        self._cursor = cursor
        self._scope: Any = None
        self.rows: int | None = None
        self._attributes: dict[str, Any] | None = None
        if _form == "event":
            self._span, self._attributes, self._context = trace.get_current_span(context), attributes, _quiet(context)
        else:
            self._span = tracer.start(described.summary or system, "client", context, attributes)
            self._context = _codec.with_span(context, self._span)
        self._begun = time.perf_counter_ns()

    def __enter__(self) -> Statement:
        self._scope = _codec.scope(self._context)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        self.end(error)

    def set(self, name: str, value: str | int | float) -> None:
        """One more attribute of the statement."""
        if self._attributes is None:
            self._span.set_attribute(name, value)
        else:
            self._attributes[name] = value

    def end(self, error: BaseException | None = None) -> None:
        """The statement has run, or failed; call it once."""
        duration_ns = time.perf_counter_ns() - self._begun
        rows = _returned_rows(self._cursor) if self.rows is None else self.rows
        if rows is not None and error is None:
            self.set("db.response.returned_rows", rows)
        if isinstance(error, Exception):
            for name, value in _failure(error).items():
                self.set(name, value)
        if self._attributes is not None:
            self._span.add_event("db.query", {**self._attributes, "db.client.operation.duration_ns": duration_ns})
            return
        if error is not None:
            record(self._span, error)
        end_span(self._span)


def quiet() -> _codec.Scope:
    """A scope in which no instrumentation, ours or contrib's, makes a span: for what a layer asks of the layer below it."""
    return _codec.scope(_quiet(current()))


def quietly(original: Any) -> Callable[..., Any]:
    """What makes a method quiet, for `Patches.wrap`: what it asks of the database is no statement of the program's."""

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        with quiet():
            return original(self, *arguments, **named)

    return method


def _quiet(context: Context) -> Context:
    return Context({**context, _SUPPRESS: True})


def _is_statement(span: Any) -> bool:
    """True for the CLIENT span of a statement that runs, whoever opened it."""
    if getattr(span, "kind", None) is not trace.SpanKind.CLIENT or not span.is_recording():
        return False
    attributes = getattr(span, "attributes", None) or ()
    return "db.system.name" in attributes or "db.system" in attributes


def _described(sql: object, system: str, cursor: Any) -> Described:
    if callable(sql):
        found: Described = sql()
        return found
    text = _text(sql, cursor)
    read = _read(text[: 2 * TEXT_LENGTH], system)
    return read if _mask else read._replace(text=text[:TEXT_LENGTH])


def _text(sql: object, cursor: Any) -> str:
    if isinstance(sql, str):
        return sql
    if isinstance(sql, (bytes, bytearray)):
        return bytes(sql[: 2 * TEXT_LENGTH]).decode("utf-8", "replace")
    try:
        if hasattr(sql, "as_string"):  # psycopg's composed statements
            return str(sql.as_string(cursor))
        if hasattr(sql, "interpolations"):  # a template string
            return "?".join(sql.strings)  # type: ignore[attr-defined]
    except Exception:
        return ""  # the driver will say what is wrong with it
    return str(sql)


def _told(where: Where | None, cursor: Any) -> dict[str, Any]:
    if where is None:
        return {}
    try:
        told = where(cursor)
    except Exception:  # a connection that was closed tells nothing; the driver will say so
        return {}
    named = {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in told.items()
    }
    return {name: value for name, value in named.items() if isinstance(value, (str, int, float)) and value != ""}


def _returned_rows(cursor: Any) -> int | None:
    """The rows of a PEP 249 cursor, which says -1 (or that without its sign) where it does not know yet."""
    if getattr(cursor, "description", None) is None:
        return None
    rows = getattr(cursor, "rowcount", None)
    return rows if isinstance(rows, int) and 0 <= rows < 1 << 63 else None


def _failure(error: Exception) -> dict[str, str]:
    """The database's own code where the driver tells it: a number first (MySQL), SQLSTATE (PostgreSQL), SQLite's name."""
    code = error.args[0] if len(error.args) > 1 and type(error.args[0]) is int else None
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = code or getattr(error, name, None)
    if code is None:
        return {"error.type": type(error).__qualname__}
    return {"error.type": str(code), "db.response.status_code": str(code)}
