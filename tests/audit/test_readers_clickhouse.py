"""The table of the Collector's exporter, read from ClickHouse's engine through its HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.audit import faults
from tests.audit.clickhouse_server import JSON, MAP, PASSWORD, USER, ClickHouse, served
from tests.audit.systems import BEGIN, SECOND, Span, System, table
from tests.audit.test_readers_formats import content
from tracefill.audit.chains import audit
from tracefill.audit.readers import SourceError, read


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    with ClickHouse(tmp_path_factory.mktemp("clickhouse")) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: ClickHouse) -> Iterator[str]:
    with served(engine) as address:
        yield f"clickhouse://{USER}:s%40cret@{address}"


@pytest.fixture(scope="module")
def system(engine: ClickHouse) -> System:
    system = System(11, requests=40)
    faults.not_propagated(system)
    faults.not_exported(system)
    system.run()
    system.spans += system.spans[:20]
    engine.fill("shop.otel_traces", system.spans, MAP)
    engine.fill("shop.as_json", system.spans, JSON)
    return system


@pytest.mark.parametrize("name", ["otel_traces", "as_json"])
def test_the_table_tells_the_same_as_the_spans(name: str, url: str, system: System) -> None:
    found = read([f"{url}/shop?table={name}"])
    assert content(found) == content(table(system.spans))
    assert (found.input.damaged_records, found.input.skipped_spans) == (0, 0)


def test_the_audit_of_the_table_is_that_of_the_spans(url: str, system: System) -> None:
    found, expected = audit(read([f"{url}/shop"])), audit(table(system.spans))
    assert {name: found[name] for name in ("chains", "findings", "edges")} == {
        name: expected[name] for name in ("chains", "findings", "edges")
    }
    assert found["findings"]


def test_a_stretch_of_time_may_be_asked_for(url: str, system: System) -> None:
    middle = BEGIN + 100 * SECOND
    early = read([f"{url}/shop?until=2026-01-01T00:01:40Z"])
    late = read([f"{url}/shop?since=2026-01-01T00:01:40Z"])
    assert early["start"].max() < middle <= late["start"].min()
    assert len(early) + len(late) == len(system.spans)


def test_spans_without_ids_or_times_are_skipped(engine: ClickHouse, url: str) -> None:
    engine.fill("odd.otel_traces", [Span(0, 1), Span(1, 0), Span(1, 2)])
    ids = "'4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7'"
    for row in (f"{ids}, 0, 5", "'x', 'y', now(), 5", f"{ids}, now(), 18446744073709551615"):
        engine.query(f"INSERT INTO odd.otel_traces (TraceId, SpanId, Timestamp, Duration) VALUES ({row})")
    found = read([f"{url}/odd"])
    assert (len(found), found.input.skipped_spans) == (1, 5)


def test_a_plain_http_url_with_clickhouses_port_is_one_too() -> None:
    with pytest.raises(SourceError, match=r"expected ClickHouse's table `default`\.`otel_traces`, but nothing answers"):
        read(["http://127.0.0.1:8123"])


def test_a_table_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(SourceError, match=r"expected ClickHouse's table `shop`.`nothing`, came 404.*UNKNOWN_TABLE"):
        read([f"{url}/shop?table=nothing"])


def test_names_with_quotes_stay_names(url: str) -> None:
    with pytest.raises(SourceError, match="came 404"):
        read([f"{url}/shop?table=a`b' OR 1"])


def test_a_table_of_something_else_is_told_apart(engine: ClickHouse, url: str, system: System) -> None:
    engine.query("CREATE TABLE shop.orders (TraceId String, price Float64) ENGINE = Memory")
    with pytest.raises(SourceError, match=r"has no Timestamp, SpanId, .*; it has TraceId, price"):
        read([f"{url}/shop?table=orders"])


def test_the_password_is_sent_and_never_shown(url: str) -> None:
    wrong = url.replace("s%40cret", "hunter2")
    with pytest.raises(SourceError, match="came 403 Forbidden: 'Code: 516") as caught:
        read([f"{wrong}/shop"])
    assert "hunter2" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
