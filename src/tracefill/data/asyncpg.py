"""asyncpg (0.27 and later): every statement on its chain, also of connections and pools that are open already.

    import tracefill
    tracefill.install(only=["asyncpg"])
    await connection.fetch("select 1")          # a CLIENT span "SELECT"

Connections, pools, prepared statements, cursors (a span where it is opened), executemany and COPY. What a pool asks of a
connection that comes back to it is no statement of the program's. With contrib's instrumentor active its spans are the only ones,
but for COPY, which it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tracefill.context import current
from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches, contrib_active

LIBRARIES = ("asyncpg",)

_tracer = Tracer("tracefill.data.asyncpg")
_patches = Patches()


def patch() -> None:
    from asyncpg.connection import Connection
    from asyncpg.cursor import BaseCursor
    from asyncpg.prepared_stmt import PreparedStatement

    for name in ("execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany"):
        if hasattr(Connection, name):
            _patches.wrap(Connection, name, _traced(_first))
        if hasattr(PreparedStatement, name):
            _patches.wrap(PreparedStatement, name, _traced(_own))
    for name in ("_bind", "_bind_exec"):
        _patches.wrap(BaseCursor, name, _traced(_own))
    for name in ("_copy_in", "_copy_out"):
        _patches.wrap(Connection, name, _copies("{}"))
    _patches.wrap(Connection, "copy_records_to_table", _copies("COPY {} FROM STDIN"))
    _patches.wrap(Connection, "reset", _quiet)


def unpatch() -> None:
    _patches.undo()


def _first(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return arguments[0] if arguments else named.get("query") or named.get("command") or ""


def _own(prepared: Any, _: tuple[Any, ...], __: dict[str, Any]) -> Any:
    return prepared._query


def _traced(query: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    def make(original: Any) -> Callable[..., Any]:
        async def statement(self: Any, *arguments: Any, **named: Any) -> Any:
            sql = query(self, arguments, named)
            contribs = contrib_active("opentelemetry.instrumentation.asyncpg", "AsyncPGInstrumentor")
            scope = nullcontext() if contribs else statements.scope(_tracer, "postgresql", sql, _where, self)
            with scope as span:
                if query is _first:
                    arguments, named = comments.added(arguments, named, kept=_kept(original, self, arguments))
                result = await original(self, *arguments, **named)
                if span is not None and isinstance(result, list):
                    span.rows = len(result)
                return result

        return statement

    return make


def _kept(method: Any, connection: Any, arguments: tuple[Any, ...]) -> bool:
    """True when asyncpg may keep the statement prepared: with arguments, or where it returns rows."""
    if method.__name__ == "execute" and len(arguments) < 2:
        return False
    return bool(connection._stmt_cache.get_max_size())


def _copies(text: str) -> Callable[[Any], Callable[..., Any]]:
    """Never current: where the rows come from and where they go is the program's own code."""

    def make(original: Any) -> Callable[..., Any]:
        async def copy(self: Any, *arguments: Any, **named: Any) -> Any:
            sql = text.format(arguments[0] if arguments else named.get("table_name", ""))
            with statements.lasting(_tracer, "postgresql", sql, _where, self, current()):
                return await original(self, *arguments, **named)

        return copy

    return make


def _quiet(original: Any) -> Callable[..., Any]:
    async def reset(self: Any, *arguments: Any, **named: Any) -> Any:
        with statements.quiet():
            return await original(self, *arguments, **named)

    return reset


def _where(asked: Any) -> dict[str, Any]:
    connection = getattr(asked, "_connection", asked)
    address, database = connection._addr, connection._params.database
    if isinstance(address, tuple):
        return {"db.namespace": database, "server.address": address[0], "server.port": address[1]}
    return {"db.namespace": database, "server.address": address}
