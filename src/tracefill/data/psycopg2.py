"""psycopg2 (2.8 and later): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["psycopg2"])
    psycopg2.connect(url).cursor().execute("select 1")      # a CLIENT span "SELECT"

Cursors of the client and of the server, executemany, callproc and COPY. The methods of psycopg2's own class are replaced, so
its subclasses (`psycopg2.extras`, a `cursor_factory`) are covered. With contrib's instrumentor active only what it misses gets a
span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ("psycopg2",)

_tracer = Tracer("tracefill.data.psycopg2")
_patches = Patches()


def patch() -> None:
    from psycopg2.extensions import cursor

    for name in ("execute", "executemany"):
        _patches.wrap(cursor, name, statements.traced(_tracer, "postgresql", _where, _commented))
    _patches.wrap(cursor, "copy_expert", statements.traced(_tracer, "postgresql", _where))
    _patches.wrap(cursor, "callproc", statements.called(_tracer, "postgresql", _where))
    _patches.wrap(cursor, "copy_from", _copies("COPY {} FROM STDIN"))
    _patches.wrap(cursor, "copy_to", _copies("COPY {} TO STDOUT"))


def unpatch() -> None:
    _patches.undo()


def _where(cursor: Any) -> dict[str, Any]:
    info = cursor.connection.info
    return {"db.namespace": info.dbname, "server.address": info.host, "server.port": info.port}


def _copies(text: str) -> Callable[[Any], Callable[..., Any]]:
    def make(original: Any) -> Callable[..., Any]:
        def copy(self: Any, file: Any, table: Any, *arguments: Any, **named: Any) -> Any:
            with statements.scope(_tracer, "postgresql", text.format(table), _where, self):
                return original(self, file, table, *arguments, **named)

        return copy

    return make


def _commented(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return comments.added(arguments, named, formatted=True)
