"""A row of a database as a queue (a transactional outbox): whoever relays it, later and elsewhere, continues whoever wrote it.

    outbox.create(connection)                                   # once: the table `tracefill_outbox`
    outbox.inject(connection, "orders_outbox", row_id)          # where the row is written, in the same transaction
    with outbox.scope(connection, "orders_outbox", row_id):     # in the relay: `run orders_outbox`, below the writer's span
        publish(row)

The context lies beside the row, in a table of its own that is keyed by table and row, so that nobody's schema changes. Whoever
has a column to spare keeps it there instead: `tracefill.messages.envelope.beside` gives the text, `context_of` the context.

Any DB-API connection (sqlite3, psycopg, PyMySQL, ...); nothing is committed here. What the database says against it is raised
as it comes.

>>> import sqlite3
>>> from opentelemetry.trace import get_current_span
>>> import tracefill
>>> connection = sqlite3.connect(":memory:")
>>> create(connection)
>>> request = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
>>> with tracefill.context.scope(request):
...     inject(connection, "orders_outbox", 17)
>>> with scope(connection, "orders_outbox", 17):
...     print(f"{get_current_span().get_span_context().trace_id:x}")
4bf92f3577b34da6a3ce929d0e0e4736
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill import context as _context
from tracefill.jobs.job_spans import Job, carried, running
from tracefill.spans import Tracer

__all__ = ["create", "extract", "inject", "scope"]

_tracer = Tracer("tracefill.jobs.outbox")

_CREATE = (
    "CREATE TABLE IF NOT EXISTS tracefill_outbox "
    "(table_name VARCHAR(190), row_id VARCHAR(190), headers TEXT, PRIMARY KEY (table_name, row_id))"
)
_DELETE = "DELETE FROM tracefill_outbox WHERE table_name = {} AND row_id = {}"
_INSERT = "INSERT INTO tracefill_outbox (table_name, row_id, headers) VALUES ({}, {}, {})"
_SELECT = "SELECT headers FROM tracefill_outbox WHERE table_name = {} AND row_id = {}"


def create(connection: Any) -> None:
    """Creates the table `tracefill_outbox` where it is not there yet."""
    _execute(connection, _CREATE)


def inject(connection: Any, table: str, row_id: object) -> None:
    """Stores the context of now beside a row; outside of any trace, none. One that lay there before is gone."""
    headers = carried()
    _execute(connection, _DELETE, table, row_id)
    if headers:
        _execute(connection, _INSERT, table, row_id, json.dumps(headers))


def extract(connection: Any, table: str, row_id: object) -> Context:
    """The context that was stored beside a row; an empty one where there is none.

    >>> import sqlite3
    >>> connection = sqlite3.connect(":memory:")
    >>> create(connection)
    >>> extract(connection, "orders_outbox", 17)
    {}
    """
    return _context.extract(_headers(connection, table, row_id))


@contextlib.contextmanager
def scope(connection: Any, table: str, row_id: object) -> Iterator[Span]:
    """The time in which a row is relayed, as a span that continues whoever wrote it; see `job_spans.correlation` for old ones.

    When it ends well, what was stored beside the row is deleted, in the relay's transaction; after an exception it stays, for
    the next attempt.
    """
    with running(_tracer, Job("outbox", table, table, str(row_id)), _headers(connection, table, row_id)) as span:
        yield span
        _execute(connection, _DELETE, table, row_id)


def _headers(connection: Any, table: str, row_id: object) -> dict[str, str]:
    found = _execute(connection, _SELECT, table, row_id)
    try:
        headers = json.loads(found[0]) if found else {}
    except (TypeError, ValueError):
        return {}
    return headers if isinstance(headers, dict) else {}


def _execute(connection: Any, statement: str, *values: object) -> Any:
    """The first row of what it returns; None where it returns nothing."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement.format(*_places(connection, len(values))), tuple(map(str, values)))
        return cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()


def _places(connection: Any, count: int) -> list[str]:
    """Placeholders the way that the connection's driver writes them."""
    driver = sys.modules.get(connection.__class__.__module__.partition(".")[0])  # also of a connection in a proxy
    style = getattr(driver, "paramstyle", "format")
    return [{"qmark": "?", "numeric": f":{n}", "named": f":{n}"}.get(style, "%s") for n in range(1, count + 1)]
