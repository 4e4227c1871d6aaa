"""PyMySQL (1.0 and later): every statement on its chain, also of connections that are open already.

    import tracefill
    tracefill.install(only=["pymysql"])
    pymysql.connect(host="db").cursor().execute("select 1")     # a CLIENT span "SELECT"

Every class of cursors, executemany (one span, into however many statements it is split) and callproc; what the driver
sends when it connects is no statement of the program's. With contrib's instrumentor active only what it misses gets a span.
"""

from __future__ import annotations

from typing import Any

from tracefill.data import comments, statements
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

LIBRARIES = ("pymysql.connections",)

_tracer = Tracer("tracefill.data.pymysql")
_patches = Patches()


def patch() -> None:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

    _patches.wrap(Connection, "connect", statements.quietly)  # `sql_mode` and `init_command` go through a cursor
    _patches.wrap(Cursor, "execute", statements.traced(_tracer, "mysql", _where, _commented))
    _patches.wrap(Cursor, "executemany", statements.traced(_tracer, "mysql", _where))
    _patches.wrap(Cursor, "callproc", statements.called(_tracer, "mysql", _where))


def unpatch() -> None:
    _patches.undo()


def _where(cursor: Any) -> dict[str, Any]:
    connection = cursor.connection
    told = {
        "db.system.name": "mariadb" if "MariaDB" in str(connection.server_version) else "mysql",
        "db.namespace": connection.db,
        "server.address": connection.unix_socket or connection.host,
    }
    return told if connection.unix_socket else {**told, "server.port": connection.port}


def _commented(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return comments.added(arguments, named, formatted=True)
