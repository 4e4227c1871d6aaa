"""sqlite3 (the standard library's): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["sqlite3"])
    sqlite3.connect("shop.db").execute("select 1")      # a CLIENT span "SELECT"

Cursors, the connection's shortcuts, executemany and executescript. The methods of sqlite3's own classes are replaced, so names
that were imported before and connections that were opened before are covered. Contrib's instrumentor traces a cursor's
`execute` and `executemany` alone; with it active only what it misses gets a span.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ()

_tracer = Tracer("tracefill.data.sqlite3")
_patches = Patches()


def patch() -> None:
    for owner in (sqlite3.Connection, sqlite3.Cursor):  # a connection's shortcut may call its cursor's method, or not
        for name in ("execute", "executemany", "executescript"):
            _patches.wrap(owner, name, statements.traced(_tracer, "sqlite", comments=_commented))


def unpatch() -> None:
    _patches.undo()


def _commented(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return comments.added(arguments, named, kept=True)
