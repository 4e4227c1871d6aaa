from __future__ import annotations

import sqlite3
import sys
from typing import Any

import pytest
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

from tests.data.driver_contract import DriverContract, only, seen


class TestSqlite3(DriverContract):
    name = "sqlite3"
    system = "sqlite"
    contrib = SQLite3Instrumentor
    parameter = "?"
    failing = ("select 'secret' from nowhere", "SQLITE_ERROR" if sys.version_info >= (3, 11) else None)

    def owners(self) -> list[Any]:
        return [sqlite3.Connection, sqlite3.Cursor]

    def connect(self) -> Any:
        return sqlite3.connect(":memory:", check_same_thread=False)

    def test_shortcuts_of_a_connection_are_one_statement_each(self, connection: Any, spans: Any) -> None:
        for name, arguments in (
            ("execute", ("create table t (a)",)),
            ("executemany", ("insert into t values (?)", [(1,), (2,)])),
            ("executescript", ("update t set a = 3; select 1",)),
        ):
            spans.clear()
            getattr(connection, name)(*arguments)
            assert only(spans).name.endswith(" t")
        assert connection.execute("select a from t").fetchall() == [(3,), (3,)]

    def test_statement_of_a_text_that_is_none_fails_as_it_would_have(self, connection: Any, spans: Any) -> None:
        for wrong in (None, 17, b"select 1"):
            with pytest.raises(TypeError, match="str"):
                connection.execute(wrong)
        assert len(seen(spans)) == 3
