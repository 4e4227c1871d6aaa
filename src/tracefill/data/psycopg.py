"""psycopg (3, sync and async): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["psycopg"])
    psycopg.connect(url).execute("select 1")            # a CLIENT span "SELECT"

Cursors of the client and of the server, the connection's shortcut, executemany, stream and COPY. A stream and a COPY are spans
from their beginning to their end, but never current: what the program does between two rows is its own. With contrib's
instrumentor active only what it misses gets a span.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from typing import Any

from opentelemetry.context import Context

from tracefill.context import current
from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ("psycopg",)

_tracer = Tracer("tracefill.data.psycopg")
_patches = Patches()


def patch() -> None:
    import psycopg

    traced = statements.traced(_tracer, "postgresql", _where, _commented)
    traced_async = statements.traced_async(_tracer, "postgresql", _where, _commented)
    for owner, make in (
        (psycopg.Cursor, traced),
        (psycopg.ServerCursor, traced),
        (psycopg.AsyncCursor, traced_async),
        (psycopg.AsyncServerCursor, traced_async),
    ):
        for name in ("execute", "executemany"):
            if name in vars(owner):
                _patches.wrap(owner, name, make)
    _patches.wrap(psycopg.Cursor, "copy", _copy)
    _patches.wrap(psycopg.Cursor, "stream", _stream)
    _patches.wrap(psycopg.AsyncCursor, "copy", _copy_async)
    _patches.wrap(psycopg.AsyncCursor, "stream", _stream_async)


def unpatch() -> None:
    _patches.undo()


def _where(cursor: Any) -> dict[str, Any]:
    info = cursor.connection.info
    return {"db.namespace": info.dbname, "server.address": info.host, "server.port": info.port}


def _commented(
    cursor: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kinds = {kind.__name__ for kind in type(cursor).__mro__}
    kept = (
        named.get("prepare") is not False
        and cursor.connection.prepare_threshold is not None
        and "ClientCursorMixin" not in kinds
    )
    return comments.added(arguments, named, kept=kept, formatted="RawCursorMixin" not in kinds)


def _lasting(cursor: Any, query: Any, context: Context) -> AbstractContextManager[None]:
    return statements.lasting(_tracer, "postgresql", query, _where, cursor, context)


def _copy(original: Any) -> Callable[..., Any]:
    @contextmanager
    def copy(self: Any, statement: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        with _lasting(self, statement, current()), original(self, statement, *arguments, **named) as copying:
            yield copying

    return copy


def _copy_async(original: Any) -> Callable[..., Any]:
    @asynccontextmanager
    async def copy(self: Any, statement: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        with _lasting(self, statement, current()):
            async with original(self, statement, *arguments, **named) as copying:
                yield copying

    return copy


def _stream(original: Any) -> Callable[..., Any]:
    def stream(self: Any, query: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        return _rows(self, query, current(), original(self, query, *arguments, **named))

    return stream


def _rows(cursor: Any, query: Any, context: Context, rows: Iterator[Any]) -> Iterator[Any]:
    with _lasting(cursor, query, context):
        yield from rows


def _stream_async(original: Any) -> Callable[..., Any]:
    def stream(self: Any, query: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        return _rows_async(self, query, current(), original(self, query, *arguments, **named))

    return stream


async def _rows_async(
    cursor: Any, query: Any, context: Context, rows: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    with _lasting(cursor, query, context):
        async with aclosing(rows):
            async for row in rows:
                yield row
