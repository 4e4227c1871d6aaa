"""ClickHouse, DuckDB and the table in memory measure the same, to the last row."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.audit import faults
from tests.audit.clickhouse_server import JSON, MAP, USER, ClickHouse, served
from tests.audit.systems import BEGIN, CLIENT, CONSUMER, INTERNAL, PRODUCER, SECOND, SERVER, Span, System, table
from tests.audit.written import write_duckdb, write_parquet
from tracefill.audit.chains import audit
from tracefill.audit.engines import Bucket, Edge, FarSide, Measures, NearSide, clickhouse, duckdb, in_memory
from tracefill.audit.readers import SourceError

BUCKET_SECONDS = 60


def system(seed: int, *plants: Callable[[System], None], requests: int = 20) -> list[Span]:
    system = System(seed, requests=requests)
    for plant in plants:
        plant(system)
    system.run()
    return system.spans


def odd_shapes() -> list[Span]:
    """Everything that a trace should not be, and what may look like it."""
    second, low = SECOND, 0xA3CE929D0E0E4736
    at = BEGIN + 300 * second

    def span(trace: int, number: int, parent: int = 0, after: int = 0, **told: object) -> Span:
        begun = at + after * second
        return Span(trace, number, parent, start=begun, end=begun + second, **told)  # type: ignore[arg-type]

    circle = [span(1, 1, 2), span(1, 2, 3, 5), span(1, 3, 1, 2), span(1, 4, 1), span(1, 5)]
    own_parent = [span(2, 1, 1)]
    late_parent = [span(3, 1, 0, 9), span(3, 2, 1, 4), span(3, 3, 2)]  # skewed clocks, no circle
    one_id = [span(4, 1, kind=SERVER), span(4, 1, name="other", kind=SERVER), span(4, 2, 1), span(4, 1, 7, kind=CLIENT)]
    roots = [span(5, 1), span(5, 2), span(5, 3, 2)]
    cut = [span(1 << 64 | low, 1), span(low, 2, 1, kind=SERVER), span(low, 3, 9), span(low, 4, 2)]
    stranger = [
        span(6, 1, 99, kind=SERVER, name="GET /in"),
        span(6, 2, after=1),
        span(7, 1, after=-1),
        span(7, 2, 99, kind=SERVER, name="GET /in"),
    ]
    called = [span(8, 1, kind=CLIENT), span(8, 2, 1, kind=SERVER, service="b", name="GET /b")]
    lost = [span(9, 2, 77, kind=SERVER, service="b", name="GET /b"), span(9, 3, 77), span(10, 1, 5), span(10, 2, 6)]
    anew = [
        span(11, 1, kind=SERVER, service="b", name="GET /b"),
        span(12, 1, kind=SERVER, service="b", name="GET /never"),
    ]
    within = [
        span(13, 1, kind=SERVER, service="b", name="GET /b"),
        span(13, 2, 1, kind=SERVER, service="b", name="GET /inner"),
    ]
    queue: dict[str, object] = {"attributes": {"messaging.destination.name": "orders"}}
    sent = [
        span(14, 1, kind=PRODUCER, **queue),
        span(14, 2, kind=PRODUCER, after=1, **queue),
        span(14, 3, 1, kind=PRODUCER),
    ]
    batch = [
        replace(
            span(15, 1, kind=CONSUMER, service="c", name="poll", library="celery"),
            links=[(14, 1), (14, 2), (14, 1), (14, 9)],
        ),
        replace(span(16, 1, kind=CONSUMER, service="c", name="poll"), links=[(99, 1)]),
        replace(span(17, 1, kind=CONSUMER, service="c", name="poll", after=3), links=[(4, 1)]),
        span(18, 1, kind=CONSUMER, service="c", name="poll"),
    ]
    database = [
        span(19, 1, kind=CLIENT, attributes={"db.system": ""}),
        span(19, 2, 1, kind=CLIENT, attributes={"db.system.name": "x"}),
    ]
    edges = [
        Span(20, 1, 5, start=BEGIN, end=BEGIN + 600 * second),
        Span(21, 1, 5, start=BEGIN + 595 * second, end=BEGIN + 600 * second),
    ]
    quoted = [span(22, 1, 50, kind=SERVER, service="it's", name='a"b\\c\n')]
    other_process = [
        span(23, 1, kind=SERVER, service="d", name="GET /near"),
        span(23, 2, 1, kind=SERVER, service="d", instance="2", name="GET /far"),
        span(24, 1, kind=SERVER, service="d", name="GET /far"),
    ]
    at_once = [span(25, 1), span(25, 2, 99, kind=SERVER, name="GET /in")]
    half_in_common = [span(3 << 64 | low + 1, 1), span(4 << 64 | low + 1, 2, 1)]
    return [
        *circle, *own_parent, *late_parent, *one_id, *roots, *cut, *stranger, *called, *lost, *anew, *within, *sent,
        *batch, *batch[:1], *database, *edges, *quoted, *circle[:2], *other_process, *at_once, *half_in_common,
    ]  # fmt: skip


def tangle(seed: int) -> list[Span]:
    """Whatever may come: ids, parents and links drawn from so few that they meet in every way."""
    draw = random.Random(seed)

    def trace() -> int:
        return (draw.random() < 0.3) << 64 | draw.randint(1, 300)

    return [
        Span(
            trace(),
            draw.randint(1, 6),
            draw.choice([0, 0, 1, 2, 3, 4, 9]),
            name=draw.choice(["GET /", "work", "orders process"]),
            kind=draw.choice([INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER, 0]),
            service=draw.choice("abc"),
            instance=draw.choice(["1", "2"]),
            library=draw.choice(["x", "celery", ""]),
            start=(begun := BEGIN + draw.randint(0, 60) * SECOND),
            end=begun + draw.randint(0, 3) * SECOND,
            attributes=draw.choice([{}, {"messaging.destination": "orders"}, {"db.system": "redis"}]),
            links=[(trace(), draw.randint(1, 6)) for _ in range(draw.choice([0, 0, 0, 1, 3]))],
        )
        for _ in range(1200)
    ]


CASES: dict[str, Callable[[], list[Span]]] = {
    "nothing_wrong": lambda: system(1),
    "messages_lost": lambda: system(2, faults.not_propagated_messages, faults.scope_too_short),
    "calls_lost": lambda: system(3, faults.not_propagated_at_times, faults.not_extracted),
    "ids_cut": lambda: system(4, faults.id_truncated, faults.handoff_lost),
    "spans_missing": lambda: system(5, faults.not_exported, faults.sampled_out),
    "copies": lambda: [*(spans := system(6, faults.unfinished_by_crash)), *spans[::7]],
    "odd_shapes": odd_shapes,
    "tangle": lambda: tangle(1),
    "another_tangle": lambda: tangle(2),
    "one_span": lambda: [Span(1, 1)],
    "no_spans": list,
}


@pytest.fixture(scope="module", params=CASES)
def spans(request: pytest.FixtureRequest) -> list[Span]:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def expected(spans: list[Span]) -> Measures:
    return in_memory.measure(table(spans), bucket_seconds=BUCKET_SECONDS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    with ClickHouse(tmp_path_factory.mktemp("clickhouse")) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: ClickHouse) -> Iterator[str]:
    with served(engine) as address:
        yield f"clickhouse://{USER}:s%40cret@{address}"


def same(found: Measures, expected: Measures) -> None:
    for name, value in vars(expected).items():
        assert getattr(found, name) == value, name


@pytest.mark.parametrize(("write", "shards"), [(write_parquet, 3), (write_duckdb, 1)])
def test_duckdb_measures_what_the_table_in_memory_does(
    write: Callable[[Path, list[Span]], None], shards: int, spans: list[Span], expected: Measures, tmp_path: Path
) -> None:
    write(tmp_path / "spans", spans)
    same(duckdb.measure_file(tmp_path / "spans", bucket_seconds=BUCKET_SECONDS, shards=shards), expected)


@pytest.mark.parametrize(("attributes", "shards"), [(MAP, 3), (JSON, 1)])
def test_clickhouse_measures_what_the_table_in_memory_does(
    attributes: str, shards: int, spans: list[Span], expected: Measures, engine: ClickHouse, url: str
) -> None:
    engine.query("DROP TABLE IF EXISTS shop.otel_traces")
    engine.fill("shop.otel_traces", spans, attributes)
    same(clickhouse.measure_url(f"{url}/shop", bucket_seconds=BUCKET_SECONDS, shards=shards), expected)


# --- that the measures are worth agreeing on ---


def measured(spans: list[Span]) -> Measures:
    return in_memory.measure(table(spans), bucket_seconds=10_000_000)


def test_odd_shapes_are_each_found() -> None:
    (bucket,) = measured(odd_shapes()).over_time
    assert bucket._asdict() | {"start_unix_nano": 0} == Bucket(
        start_unix_nano=0, traces=29, whole=17, left_out=2, missing_parents=5, several_roots=4, duplicate_ids=1,
        truncated=1, cycles=2, begun_outside=4,
    )._asdict()  # fmt: skip


@pytest.mark.parametrize("plant", [None, faults.not_exported, faults.id_truncated])
def test_shapes_agree_with_the_audit_where_shapes_say_it_all(plant: Callable[[System], None] | None) -> None:
    system = System(12, requests=60, skew_seconds=0)
    if plant:
        plant(system)
    system.run()
    found, chains = measured(system.spans), audit(table(system.spans))["chains"]
    traces, whole, left_out = (
        sum(getattr(bucket, name) for bucket in found.over_time) for name in ("traces", "whole", "left_out")
    )
    assert traces - left_out - chains["torn_off"] == chains["total"]
    truncated = sum(bucket.truncated for bucket in found.over_time)
    assert whole - chains["whole"] == truncated  # the trace that it was cut from looks whole by itself


def test_kept_edges_are_those_of_the_audit() -> None:
    spans = system(13)
    kept = {
        Edge(e["from"], e["to"], e["layer"], e["via"], e["library"], e["kept"]) for e in audit(table(spans))["edges"]
    }
    assert set(measured(spans).edges) == kept


def test_far_and_near_sides_that_lost_each_other_are_counted() -> None:
    client = [Span(1, 1, kind=CLIENT, service="a", name="POST"), Span(2, 1, kind=CLIENT, service="a", name="POST")]
    server = [
        Span(1, 2, 1, kind=SERVER, service="b", name="POST /"),
        Span(3, 1, kind=SERVER, service="b", name="POST /"),
    ]
    found = measured([*client, *server, Span(4, 1, 9, kind=SERVER, service="b", name="POST /")])
    assert found.far_sides == [FarSide("b", "POST /", "shop", missing=1, begun=1)]
    assert found.near_sides == [NearSide("a", "POST", "shop", "", unanswered=1)]


def test_the_document_is_json() -> None:
    document = json.loads(json.dumps(measured(odd_shapes()).as_json()))
    assert document["schema"] == "tracefill.measures/1"
    assert document["over_time"][0]["traces"] == 29
    assert document["end_unix_nano"] == str(BEGIN + 600 * SECOND)


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(SourceError, match="expected Parquet or DuckDB, came something else"):
        duckdb.measure_file(tmp_path / "x")


def test_internal_spans_are_no_sides() -> None:
    assert measured([Span(1, 1, kind=INTERNAL)]).near_sides == []
