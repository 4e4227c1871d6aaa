"""SQLAlchemy (1.4, 2.0 and 2.1; sync and async): one span a statement, whatever the driver.

    import tracefill
    tracefill.install(only=["sqlalchemy"])
    with engine.connect() as connection:                # engines and connections that exist already too
        connection.execute(text("select 1"))            # a CLIENT span "SELECT"

`trace(engine)` does it for one engine alone, without install(). The first statement of a connection says in
`db.client.connection.wait_time` how many seconds the pool took to give it. What SQLAlchemy and the driver ask of the database for
themselves (when they connect, set the isolation level, ping, begin, commit and fetch more rows) is no statement of the program's.
The driver's instrumentation, ours or contrib's, keeps quiet below; where contrib's SQLAlchemyInstrumentor has a span for the
statement, that is the one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from tracefill.data import statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "trace", "unpatch"]

LIBRARIES = ("sqlalchemy.engine",)

EngineType = TypeVar("EngineType")

_tracer = Tracer("tracefill.data.sqlalchemy")
_patches = Patches()
_covered: set[type] = set()
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
_quietened: WeakSet[Any] = WeakSet()
# What SQLAlchemy asks of a dialect for its own sake.
_FOR_ITSELF = (
    "initialize",
    "get_isolation_level",
    "set_isolation_level",
    "reset_isolation_level",
    "do_ping",
    "do_begin",
    "do_commit",
    "do_rollback",
)
# How long the pool took to give each connection, until its first statement has said so.
_waited_s: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def trace(engine: EngineType) -> EngineType:
    """The same engine (or AsyncEngine), each of whose statements is a span from now on."""
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    dialect = sync_engine.dialect
    for name, make in _makers().items():
        if hasattr(dialect, name):
            setattr(dialect, name, make(getattr(type(dialect), name)).__get__(dialect))
    sync_engine.raw_connection = _waits(type(sync_engine).raw_connection).__get__(sync_engine)
    return engine


def patch() -> None:
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy
    from sqlalchemy.engine.interfaces import Dialect

    _patches.wrap(Engine, "raw_connection", _waits)
    _cover(Dialect)
    for name in ("__init__", "_buffer_rows", "fetchmany", "fetchall"):
        _patches.wrap(BufferedRowCursorFetchStrategy, name, statements.quietly)


def unpatch() -> None:
    _patches.undo()
    _covered.clear()


def _makers() -> dict[str, Callable[[Any], Callable[..., Any]]]:
    executes = dict.fromkeys(("do_execute", "do_executemany", "do_execute_no_params"), _statement)
    return executes | {"on_connect_url": _connects} | dict.fromkeys(_FOR_ITSELF, statements.quietly)


def _cover(dialect: type) -> None:
    """Patches a class of dialects and those derived from it, each where it has a method of its own."""
    if dialect not in _covered:
        _covered.add(dialect)
        for name, make in _makers().items():
            if name in vars(dialect):
                _patches.wrap(dialect, name, make)
    derived: type
    for derived in dialect.__subclasses__():
        _cover(derived)


def _statement(original: Any) -> Callable[..., Any]:
    def statement(self: Any, cursor: Any, sql: Any, *arguments: Any, **named: Any) -> Any:
        context = named.get("context", arguments[-1] if arguments else None)
        contribs = getattr(context, "_otel_span", None) is not None
        span = None if contribs else statements.begin(_tracer, _system(self), sql, lambda _: _where(context), cursor)
        if span is None and not contribs:
            return original(self, cursor, sql, *arguments, **named)
        with span or nullcontext(), statements.quiet():
            return original(self, cursor, sql, *arguments, **named)

    return statement


def _connects(original: Any) -> Callable[..., Any]:
    """What the dialect does with each new connection is quiet; the program's own listeners are not."""

    def on_connect_url(self: Any, *arguments: Any, **named: Any) -> Any:
        on_connect = original(self, *arguments, **named)
        return None if on_connect is None else functools.partial(_quietly, on_connect)

    return on_connect_url


def _connects_quietly(engine: Any) -> None:
    """The same for an engine that was made before, whose pool has been given what the dialect does already."""
    from sqlalchemy import event

    if engine in _quietened:
        return
    _quietened.add(engine)
    for listener in list(engine.pool.dispatch.connect):
        if getattr(listener, "__module__", "") == "sqlalchemy.engine.create" and listener.__name__ == "on_connect":
            event.remove(engine.pool, "connect", listener)
            event.listen(engine.pool, "connect", _while_installed(listener), insert=True)


def _while_installed(listener: Callable[..., Any]) -> Callable[..., Any]:
    def connected(connection: Any, record: Any) -> None:
        with statements.quiet() if _patches.active else nullcontext():
            listener(connection, record)

    return connected


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    with statements.quiet():
        return function(*arguments)


def _waits(original: Any) -> Callable[..., Any]:
    def raw_connection(self: Any, *arguments: Any, **named: Any) -> Any:
        if _patches.active:
            _connects_quietly(self)
            if type(self.dialect) not in _covered:  # imported since
                for kind in type(self.dialect).__mro__[:-1]:
                    _cover(kind)
        begun = time.perf_counter()
        connection = original(self, *arguments, **named)
        _waited_s[connection] = time.perf_counter() - begun
        return connection

    return raw_connection


def _system(dialect: Any) -> str:
    if getattr(dialect, "is_mariadb", False):
        return "mariadb"
    return str(_SYSTEMS.get(dialect.name, dialect.name))


def _where(context: Any) -> dict[str, Any]:
    url = context.engine.url
    told = {"db.namespace": url.database, "server.address": url.host, "server.port": url.port}
    waited_s = _waited_s.pop(context._dbapi_connection, None)
    return told if waited_s is None else {**told, "db.client.connection.wait_time": waited_s}
