"""sqlite3 (the standard library's): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["sqlite3"])
    sqlite3.connect("shop.db").execute("select 1")      # a CLIENT span "SELECT"

Cursors, the connection's shortcuts, executemany and executescript. The methods of sqlite3's own classes are replaced, so names
that were imported before and connections that were opened before are covered. Contrib's instrumentor traces `cursor.execute`
alone; with it active only what it misses gets a span.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from tracefill.data import statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ()

_tracer = Tracer("tracefill.data.sqlite3")
_patches = Patches()
_METHODS = ("execute", "executemany", "executescript")


def _traced(original: Callable[..., Any]) -> Callable[..., Any]:
    def statement(self: Any, sql: str, *arguments: Any) -> Any:
        with statements.scope(_tracer, "sqlite", sql, {}):
            return original(self, sql, *arguments)

    return statement


def patch() -> None:
    for owner in (sqlite3.Connection, sqlite3.Cursor):
        for name in _METHODS:
            _patches.wrap(owner, name, _traced)


def unpatch() -> None:
    _patches.undo()
