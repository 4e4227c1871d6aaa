"""mysqlclient (`import MySQLdb`, 2.0 and later): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["mysqlclient"])
    MySQLdb.connect(host="db").cursor().execute("select 1")     # a CLIENT span "SELECT"

Every class of cursors, executemany (one span, into however many statements it is split) and callproc. The address of a server
is known of connections that are opened from now on. With contrib's instrumentor active only what it misses gets a span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ("MySQLdb.connections",)

_tracer = Tracer("tracefill.data.mysqlclient")
_patches = Patches()
# What each connection was opened with: it does not remember.
_opened: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def patch() -> None:
    from MySQLdb.connections import Connection
    from MySQLdb.cursors import BaseCursor

    _patches.wrap(BaseCursor, "execute", statements.traced(_tracer, "mysql", _where, _commented))
    _patches.wrap(BaseCursor, "executemany", statements.traced(_tracer, "mysql", _where))
    _patches.wrap(BaseCursor, "callproc", statements.called(_tracer, "mysql", _where))
    _patches.wrap(Connection, "__init__", _remembers)


def unpatch() -> None:
    _patches.undo()


def _remembers(original: Any) -> Callable[..., None]:
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        given = dict(
            zip(("host", "user", "password", "database", "port", "unix_socket"), arguments, strict=False), **named
        )
        _opened[self] = {
            "db.namespace": given.get("database") or given.get("db"),
            "server.address": given.get("unix_socket") or given.get("host"),
            "server.port": None if given.get("unix_socket") else given.get("port"),
        }

    return __init__


def _where(cursor: Any) -> dict[str, Any]:
    connection = cursor.connection
    system = "mariadb" if "MariaDB" in str(connection.get_server_info()) else "mysql"
    return {"db.system.name": system, **_opened.get(connection, {})}


def _commented(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return comments.added(arguments, named, formatted=True)
