"""The statement on its chain: what a database call is named, what it says, and in which of two forms.

| form | what a statement becomes |
|---|---|
| "span" (default) | a CLIENT span by the stable database conventions |
| "event" | a `db.query` event on the current span, with the duration; nothing when no span is current |

`configure(form="event")` chooses for the process. The text is what the program wrote, its literals masked, its length bounded;
parameters are never recorded. A statement below another one's span (an ORM's over its driver, contrib's over ours) gets no
second one.
"""

from __future__ import annotations

import functools
import re
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from opentelemetry import trace

from tracefill.spans import SpanScope, Tracer, suppressed

__all__ = ["configure", "described", "masked", "scope"]

TEXT_LENGTH = 2048
FORMS = ("span", "event")

_form = "span"

# A string (with doubled quotes inside), a dollar-quoted string, a number that is no part of a name, a comment.
_LITERAL = re.compile(
    r"""'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|(?<![\w$@:%.])[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.])"""
    r"""|/\*.*?\*/|--[^\n]*""",
    re.DOTALL,
)
_OPERATION = re.compile(r"\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*\(?\s*([A-Za-z]+)", re.DOTALL)
_TARGET = re.compile(r"\b(?:from|into|update|table|join)\s+(?:if\s+(?:not\s+)?exists\s+)?([\w.$\"`\[\]]+)", re.IGNORECASE)


def configure(*, form: str) -> None:
    """Chooses "span" or "event" for all databases of this process; raises ValueError for anything else."""
    global _form
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    _form = form


@functools.lru_cache(2048)
def masked(text: str) -> str:
    """The statement with `?` in the place of its literals, comments left out, at most 2048 characters.

    >>> masked("select * from users where name = 'O''Brien' and age > 41 -- secret")
    'select * from users where name = ? and age > ?'
    """
    without = _LITERAL.sub(lambda found: "" if found[0].startswith(("/*", "--")) else "?", text[: 4 * TEXT_LENGTH])
    return without.strip()[:TEXT_LENGTH]


@functools.lru_cache(2048)
def described(text: str) -> tuple[str, str]:
    """The operation and the table of a statement, as far as they can be told: ("SELECT", "orders").

    >>> described("insert into orders values (?, ?)")
    ('INSERT', 'orders')
    """
    operation = _OPERATION.match(text[:TEXT_LENGTH])
    target = _TARGET.search(masked(text))
    return operation[1].upper() if operation else "", target[1].strip('"`[]') if target else ""


def scope(tracer: Tracer, system: str, statement: object, where: dict[str, Any]) -> AbstractContextManager[Any]:
    """The time in which a statement runs: a span, an event, or nothing where an outer layer has one already.

    `where` holds what is known of the server: `db.namespace`, `server.address`, `server.port`.
    """
    current = trace.get_current_span()
    if _is_statement(current) or suppressed():
        return nullcontext()
    text = statement.decode("utf-8", "replace") if isinstance(statement, bytes) else str(statement)
    if _form == "event":
        return _Event(current, system, text, where)
    return _span(tracer, system, text, where)


def _span(tracer: Tracer, system: str, text: str, where: dict[str, Any]) -> SpanScope:
    operation, target = described(text)
    name = f"{operation} {target}".strip() or system
    return tracer.scope(name, "client", attributes=lambda: _attributes(system, text, where))


def _attributes(system: str, text: str, where: dict[str, Any]) -> dict[str, Any]:
    operation, target = described(text)
    attributes = {"db.system.name": system, "db.query.text": masked(text), **where}
    if operation:
        attributes["db.operation.name"] = operation
    if target:
        attributes["db.collection.name"] = target
    return attributes


def _is_statement(span: Any) -> bool:
    """True for the CLIENT span of a statement, whoever opened it."""
    attributes = getattr(span, "attributes", None)
    if not attributes or getattr(span, "kind", None) is not trace.SpanKind.CLIENT:
        return False
    return "db.system.name" in attributes or "db.system" in attributes


class _Event:
    def __init__(self, span: Any, system: str, text: str, where: dict[str, Any]) -> None:
        self._span = span
        self._what = (system, text, where)
        self._begun = 0

    def __enter__(self) -> None:
        self._begun = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span.is_recording():
            attributes = _attributes(*self._what)
            attributes["db.client.operation.duration_ns"] = time.perf_counter_ns() - self._begun
            if error is not None:
                attributes["error.type"] = type(error).__name__
            self._span.add_event("db.query", attributes)
