"""aiosqlite (0.17 and later): its worker thread runs each statement in the context of whoever awaits it.

    import tracefill
    tracefill.install(only=["aiosqlite", "sqlite3"])
    await connection.execute("select 1")            # sqlite3's span, below the caller's

aiosqlite hands functions of sqlite3 to a thread of its own, so the spans are those of sqlite3, ours or contrib's; without this
they would begin traces of their own. Connections that are open already are covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.snapshots import bind
from tracefill.wrapping import Patches

LIBRARIES = ("aiosqlite.core",)

_patches = Patches()


def patch() -> None:
    from aiosqlite.core import Connection

    _patches.wrap(Connection, "_execute", _carried)


def unpatch() -> None:
    _patches.undo()


def _carried(original: Any) -> Callable[..., Any]:
    async def _execute(self: Any, fn: Any, *arguments: Any, **named: Any) -> Any:
        return await original(self, bind(fn), *arguments, **named)

    return _execute
