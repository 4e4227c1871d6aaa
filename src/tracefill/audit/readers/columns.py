"""Parquet files and DuckDB databases, read by columns: the layout of ``otel_traces``, in either spelling.

The names are those of the Collector's ClickHouse exporter (``TraceId``, ``SpanAttributes``), or the same in snake case.
What few spans differ in arrives as a number, and its text is asked for once: ten million spans are no trouble.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import duckdb
import numpy as np

from tracefill.audit import spans as table
from tracefill.audit.readers.batch import Column, SpanBatch, Tick, kind_number
from tracefill.audit.readers.records import SourceError

ROWS_AT_ONCE = 1 << 18
MEMORY_LIMIT = "1GB"

# What the table has to tell, each under one of these names (in lower case, without underscores and dots).
NAMES = {
    "trace_id": ("traceid",),
    "span_id": ("spanid",),
    "parent_id": ("parentspanid", "parentid"),
    "name": ("spanname", "name"),
    "kind": ("spankind", "kind"),
    "service": ("servicename",),
    "start": ("timestamp", "starttimeunixnano", "starttime"),
    "end": ("endtimeunixnano", "endtime"),
    "duration": ("duration", "durationnano"),
    "resource": ("resourceattributes",),
    "library": ("scopename",),
    "attributes": ("spanattributes", "attributes"),
    "link_trace_ids": ("linkstraceid",),
    "link_span_ids": ("linksspanid",),
}
NEEDED = ("trace_id", "span_id", "parent_id", "name", "kind", "service", "start")

# Attributes that many spans have for themselves, with the name that each has elsewhere.
UNIQUE = {"messaging.message.id": "messaging.message_id", "url.path": "http.target", "url.full": "http.url"}
URL = "url.full"  # tells the peer too
THREAD = "thread.id"
SHARED = sorted(table.ATTRIBUTES - {*UNIQUE, *UNIQUE.values(), THREAD})

MACROS = """
CREATE TEMP MACRO is_id(id) AS regexp_full_match(id, '[0-9a-fA-F]{16}|[0-9a-fA-F]{32}');
CREATE TEMP MACRO half(id, digits) AS coalesce(CASE WHEN is_id(id) THEN ('0x' || digits)::UBIGINT END, 0::UBIGINT);
CREATE TEMP MACRO high(id) AS CASE WHEN length(id) = 32 THEN half(id, left(id, 16)) ELSE 0::UBIGINT END;
CREATE TEMP MACRO low(id) AS half(id, right(id, 16));
CREATE TEMP MACRO short(id) AS CASE WHEN length(id) = 16 THEN half(id, id) ELSE 0::UBIGINT END;
"""

Known = TypeVar("Known")


class Relation(NamedTuple):
    """A table: how it is named in SQL, and the column that numbers its rows from 0."""

    sql: str
    row: str


class Place(NamedTuple):
    """What few spans differ in, besides their names."""

    kind: int
    service: int
    process: int
    library: int
    attributes: dict[str, object]


def read_table(path: Path, kind: str, tick: Tick) -> table.Spans:
    """The spans of a Parquet file, or of all tables of spans in a DuckDB database. Raises `SourceError`."""
    with opened(path, kind) as (connection, tables):
        size = path.stat().st_size // max(len(tables), 1)
        return table.concat([_Reader(connection, told, size).read(tick) for told in tables])


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[TableSql]]]:
    """A connection, and the words for each table of spans. Raises `SourceError` when there is none, or it breaks."""
    with duckdb.connect() as connection, TemporaryDirectory(prefix="tracefill-") as folder:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'; SET temp_directory = {literal(folder)}; {MACROS}")
        try:
            yield connection, [_described(connection, one, path) for one in _relations(connection, path, kind)]
        except duckdb.Error as error:
            raise SourceError(f"{path}: expected {kind} that can be read, came: {error}") from None


def _described(connection: duckdb.DuckDBPyConnection, relation: Relation, path: Path) -> TableSql:
    types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation.sql}").fetchall()}
    names = _named(list(types))
    if missing := _missing(names):
        raise SourceError(
            f"{path}: expected spans in the layout of otel_traces, "
            f"but there is no {', '.join(missing)} among {', '.join(types)}"
        )
    return TableSql(relation, names, types)


def _relations(connection: duckdb.DuckDBPyConnection, path: Path, kind: str) -> list[Relation]:
    if kind == "Parquet":
        return [Relation(f"read_parquet({literal(str(path))}, file_row_number = true)", "file_row_number")]
    connection.execute(f"ATTACH {literal(str(path))} AS source (READ_ONLY)")
    found = connection.execute(
        "SELECT schema_name, table_name, list(column_name) FROM duckdb_columns() JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) WHERE database_name = 'source' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    relations = [
        Relation(f"source.{identifier(schema)}.{identifier(name)}", "rowid")
        for schema, name, columns in found
        if not _missing(_named(columns))
    ]
    if not relations:
        names = ", ".join(f"{name} ({', '.join(columns)})" for _, name, columns in found) or "no tables"
        raise SourceError(f"{path}: expected a table of spans in the layout of otel_traces, came {names}")
    return relations


def _named(columns: list[str]) -> dict[str, str]:
    """What each of our names is called there."""
    plain = {re.sub("[_.]", "", name.lower()): name for name in columns}
    return {ours: plain[one] for ours, theirs in NAMES.items() for one in reversed(theirs) if one in plain}


def _missing(names: Mapping[str, str]) -> list[str]:
    return [name for name in NEEDED if name not in names] + (
        ["duration"] if not names.keys() & {"end", "duration"} else []
    )


class _Reader:
    """Reads one table, so many rows at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, sql: TableSql, size: int):
        self._connection, self._relation, self._sql = connection, sql.relation, sql
        self._batch = SpanBatch()
        self._places: dict[int, Place] = {}
        self._names: dict[int, int] = {}
        self._size = size

    def read(self, tick: Tick) -> table.Spans:
        (total,) = self._connection.execute(f"SELECT count(*) FROM {self._relation.sql}").fetchone() or (0,)
        tell = self._batch.teller(tick)
        for first in range(0, total, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, total)
            self._read_rows(first, last)
            tell(self._size * last // total - self._size * first // total)
        return self._batch.build()

    def _read_rows(self, first: int, last: int) -> None:
        these = f"{self._relation.row} >= {first} AND {self._relation.row} < {last}"
        row = {"row": self._relation.row}
        rows = self._fetch(row | self._sql.numbers() | self._sql.unique(), these)
        row_numbers, unique = rows.pop("row"), {key: rows.pop(key) for key in UNIQUE}
        places, of_place = self._known(rows.pop("place"), row_numbers, self._places, self._learn_places)
        names, of_name = self._known(rows.pop("name"), row_numbers, self._names, self._learn_names)
        shared = np.array([place[:4] for place in places], np.int32)[of_place]
        for at, column in enumerate(("kind", "service", "process", "library")):
            rows[column] = shared[:, at]
        rows["name"] = np.array(names, np.int32)[of_name]
        self._batch.add_columns(rows | self._traits(places, of_place, unique), self._links(these, row_numbers))

    def _traits(self, places: list[Place], of_place: Column, unique: dict[str, Column]) -> dict[str, Column]:
        """What attributes say: those of the place for all of its rows, and then what rows tell for themselves."""
        traits = np.array([self._batch.traits(place.attributes) for place in places], np.int64)[of_place]
        for key, texts in reversed(unique.items()):  # the first of them counts most
            for row in np.flatnonzero(texts != "").tolist():
                if key == URL:
                    traits[row] = self._batch.traits(places[of_place[row]].attributes | {key: texts[row]})
                else:
                    traits[row, -1] = table.subject_of({key: texts[row]})
        return {name: traits[:, at] for at, name in enumerate(("database", "destination", "peer", "subject"), 1)}

    def _links(self, these: str, row_numbers: Column) -> dict[str, Column]:
        links = self._sql.links(these)
        columns = self._connection.execute(links).fetchnumpy() if links else _NO_LINKS
        return columns | {"link_row": np.searchsorted(row_numbers, columns["link_row"])}

    def _known(
        self, keys: Column, row_numbers: Column, known: dict[int, Known], learn: Callable[[list[int]], None]
    ) -> tuple[list[Known], Column]:
        """What the keys stand for, and which of that each row has; of new keys a row is looked at."""
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        new = [row for key, row in zip(distinct.tolist(), row_numbers[first].tolist(), strict=True) if key not in known]
        if new:
            learn(new)
        return [known[key] for key in distinct.tolist()], inverse

    def _learn_places(self, rows: list[int]) -> None:
        for key, kind, service, instance, library, *attributes in self._look(self._sql.place(), rows):
            told = {name: value for name, value in zip(SHARED, attributes, strict=True) if value is not None}
            texts = (service or "", table.process_name(service or "", instance or ""), library or "")
            of_service, of_process, of_library = map(self._batch.builder.intern, texts)
            self._places[key] = Place(kind_number(kind), of_service, of_process, of_library, told)

    def _learn_names(self, rows: list[int]) -> None:
        for key, name in self._look(self._sql.name(), rows):
            self._names[key] = self._batch.builder.intern(name or "")

    def _look(self, texts: dict[str, str], rows: list[int]) -> list[tuple[Any, ...]]:
        """The hash of these texts, and the texts, in these rows."""
        values, row = ", ".join(texts.values()), self._relation.row
        these = f"{row} BETWEEN {min(rows)} AND {max(rows)} AND {row} IN ({', '.join(map(str, rows))})"
        sql = f"SELECT hash({values}), {values} FROM {self._relation.sql} WHERE {these}"
        return self._connection.execute(sql).fetchall()

    def _fetch(self, columns: dict[str, str], these: str) -> dict[str, Column]:
        selected = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
        sql = f"SELECT {selected} FROM {self._relation.sql} WHERE {these} ORDER BY {self._relation.row}"
        return dict(self._connection.execute(sql).fetchnumpy())


_NO_LINKS: dict[str, Column] = {
    "link_row": np.empty(0, np.int64),
    "link_trace_id_high": np.empty(0, np.uint64),
    "link_trace_id_low": np.empty(0, np.uint64),
    "link_span_id": np.empty(0, np.uint64),
}


class TableSql:
    """The expressions for what we read, in the words of one table."""

    def __init__(self, relation: Relation, names: Mapping[str, str], types: Mapping[str, str]):
        self.relation, self._names, self._types = relation, names, types

    def numbers(self) -> dict[str, str]:
        """Columns that arrive as numbers; `place` and `name` stand for texts."""
        return {
            "trace_id_high": f"high({self.id('trace_id')})",
            "trace_id_low": f"low({self.id('trace_id')})",
            "span_id": f"short({self.id('span_id')})",
            "parent_id": f"short({self.id('parent_id')})",
            "start": self.time("start"),
            "end": self.end(),
            "thread": f"coalesce(try_cast({self.attribute('attributes', THREAD)} AS BIGINT), {table.NO_THREAD})",
            "place": f"hash({', '.join(self.place().values())})",
            "name": f"hash({self.text('name')})",
        }

    def unique(self) -> dict[str, str]:
        """Texts that many spans have for themselves; empty where they are not told."""
        return {
            name: f"coalesce(nullif({self.attribute('attributes', name)}, ''), {self.attribute('attributes', other)}, '')"
            for name, other in UNIQUE.items()
        }

    def place(self) -> dict[str, str]:
        """What few spans differ in, in the order of `_learn_places`."""
        return {
            "kind": self.text("kind"),
            "service": self.text("service"),
            "instance": self.attribute("resource", "service.instance.id"),
            "library": self.text("library"),
        } | {key: self.attribute("attributes", key) for key in SHARED}

    def name(self) -> dict[str, str]:
        return {"name": self.text("name")}

    def links(self, these: str) -> str | None:
        """The query for the links of these rows; None where the table has no columns of links."""
        if not (columns := self.link_ids()):
            return None
        trace_ids, span_ids = columns
        return (
            "SELECT link_row, high(trace_id) AS link_trace_id_high, low(trace_id) AS link_trace_id_low, "
            f"short(span_id) AS link_span_id FROM (SELECT {self.relation.row} AS link_row, unnest({trace_ids}) AS trace_id, "
            f"unnest({span_ids}) AS span_id FROM {self.relation.sql} WHERE {these} AND len({trace_ids}) > 0)"
        )

    def text(self, ours: str) -> str:
        return f"{identifier(self._names[ours])}::VARCHAR" if ours in self._names else "NULL::VARCHAR"

    def id(self, ours: str) -> str:
        name = self._names[ours]
        return f"hex({identifier(name)})" if self._types[name] == "BLOB" else self.text(ours)

    def time(self, ours: str) -> str:
        """Nanoseconds; 0 where they are not told."""
        name = self._names[ours]
        moment = self._types[name].startswith("TIMESTAMP")
        sql = f"epoch_ns({identifier(name)})" if moment else f"try_cast({identifier(name)} AS BIGINT)"
        return f"coalesce({sql}, 0)"

    def end(self) -> str:
        """Nanoseconds; 0 where they are not told, or are more than anybody's clock shows."""
        if "end" in self._names:
            return self.time("end")
        duration = f"try_cast({identifier(self._names['duration'])} AS HUGEINT)"
        return f"coalesce(try_cast({self.time('start')}::HUGEINT + {duration} AS BIGINT), 0)"

    def link_ids(self) -> tuple[str, str] | None:
        """The columns with the ids of links; None where there are none."""
        if "link_trace_ids" not in self._names or "link_span_ids" not in self._names:
            return None
        return identifier(self._names["link_trace_ids"]), identifier(self._names["link_span_ids"])

    def attribute(self, ours: str, key: str) -> str:
        """The text of an attribute, whether attributes are a map, an object or JSON; NULL where it is not told."""
        if ours not in self._names:
            return "NULL::VARCHAR"
        column, kind = identifier(self._names[ours]), self._types[self._names[ours]]
        if kind.startswith("MAP"):
            return f"map_extract({column}, {literal(key)})[1]::VARCHAR"
        if kind.startswith("STRUCT"):
            field = re.search(rf'[(\s]"?{re.escape(key)}"?\s', kind)
            return f"struct_extract({column}, {literal(key)})::VARCHAR" if field else "NULL::VARCHAR"
        path = f'$."{key}"'
        return f"json_extract_string({column}::VARCHAR, {literal(path)})"


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
