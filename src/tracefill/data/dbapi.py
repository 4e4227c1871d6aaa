"""Any connection of PEP 249: each of its statements on its chain.

    from tracefill.data.dbapi import trace
    connection = trace(oracledb.connect(...))
    connection.cursor().execute("select 1 from dual")       # a CLIENT span "SELECT"

For drivers that have no module here; of those that have, `tracefill.install()` covers every connection. Cursors, executemany,
callproc, and the shortcuts that some drivers' connections have (execute, executemany, executescript).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.data import statements
from tracefill.spans import Tracer

__all__ = ["trace"]

_tracer = Tracer("tracefill.data.dbapi")
# db.system.name of the drivers' packages whose name is another.
_SYSTEMS = {
    "sqlite3": "sqlite",
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pg8000": "postgresql",
    "pymysql": "mysql",
    "MySQLdb": "mysql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "oracledb": "oracle.db",
    "cx_Oracle": "oracle.db",
    "pymssql": "microsoft.sql_server",
    "ibm_db_dbi": "ibm.db2",
    "hdbcli": "sap.hana",
}
_TRACED = {
    "execute": statements.traced,
    "executemany": statements.traced,
    "executescript": statements.traced,
    "callproc": statements.called,
}


def trace(connection: Any, system: str | None = None, **where: str | int) -> Any:
    """The same connection, seen through a proxy that makes a span of each of its statements.

    `system` is its `db.system.name` (default: told by the driver's name), `where` what else is known of the server, by the
    names of OpenTelemetry's attributes with `_` for `.`.

    >>> import sqlite3
    >>> connection = trace(sqlite3.connect(":memory:"), db_namespace="shop")
    >>> connection.execute("select 17").fetchone()
    (17,)
    >>> isinstance(connection, sqlite3.Connection)
    True
    """
    package = type(connection).__module__.partition(".")[0]
    attributes = {name.replace("_", "."): value for name, value in where.items()}
    return _Connection(connection, system or _SYSTEMS.get(package, "other_sql"), lambda _: attributes)


class _Proxy:
    """Passes for what it stands before, also in `isinstance`."""

    __slots__ = ("_inner", "_system", "_where")

    def __init__(self, inner: Any, system: str, where: statements.Where) -> None:
        for name, value in (("_inner", inner), ("_system", system), ("_where", where)):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        make = _TRACED.get(name)
        return found if make is None or not callable(found) else self._statement(make, found)

    def _statement(self, make: Callable[..., Any], method: Any) -> Callable[..., Any]:
        def statement(inner: Any, *arguments: Any, **named: Any) -> Any:
            return self._returned(method(*arguments, **named))

        made: Callable[..., Any] = make(_tracer, self._system, self._where)(statement).__get__(self._inner)
        return made

    def _returned(self, result: Any) -> Any:
        """A cursor is seen through a proxy too, and a method that returns its own object (PEP 249 lets it) returns ours."""
        if result is self._inner:
            return self
        return _Cursor(result, self._system, self._where) if hasattr(result, "fetchone") else result

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner)

    def __enter__(self) -> Any:
        return self._returned(self._inner.__enter__())

    def __exit__(self, *error: Any) -> Any:
        return self._inner.__exit__(*error)


class _Connection(_Proxy):
    __slots__ = ()

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        return self._returned(self._inner.cursor(*arguments, **named))


class _Cursor(_Proxy):
    __slots__ = ()

    def __iter__(self) -> Any:
        return iter(self._inner)

    def __next__(self) -> Any:
        return next(self._inner)
