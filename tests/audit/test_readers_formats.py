"""The same spans give the same table, and the same audit, from every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.audit import faults
from tests.audit.systems import INTERNAL, Span, System, table
from tests.audit.written import FILES, ROUNDED, US
from tracefill.audit.chains import audit
from tracefill.audit.readers import read
from tracefill.audit.spans import Spans

NUMBERS = (
    "trace_id_high",
    "trace_id_low",
    "span_id",
    "parent_id",
    "start",
    "end",
    "thread",
    "kind",
    "database",
    "subject",
)
TEXTS = ("name", "service", "process", "library", "destination", "peer")


def content(spans: Spans) -> list[tuple[Any, ...]]:
    """What the table says, in an order of its own."""
    columns = [spans[name].tolist() for name in NUMBERS]
    columns += [[spans.strings[number] for number in spans[name].tolist()] for name in TEXTS]
    links: list[list[tuple[int, ...]]] = [[] for _ in range(len(spans))]
    ids = (spans[f"link_{name}"].tolist() for name in ("row", "trace_id_high", "trace_id_low", "span_id"))
    for row, *target in zip(*ids, strict=True):
        links[row].append(tuple(target))
    return sorted(zip(*columns, map(tuple, links), strict=True))


def as_told(spans: Sequence[Span], name: str) -> list[Span]:
    """The spans as a format tells them: some round times, Zipkin has no kind for INTERNAL."""
    if name in ROUNDED:
        spans = [_rounded(span) for span in spans]
    if name == "zipkin.json":
        spans = [replace(span, kind=0 if span.kind == INTERNAL else span.kind) for span in spans]
    return list(spans)


def _rounded(span: Span) -> Span:
    start = span.start // US * US
    return replace(span, start=start, end=start + (span.end - span.start) // US * US)


@pytest.fixture(scope="module")
def system() -> System:
    """A system with a bit of everything that can go wrong."""
    system = System(7, requests=40)
    for plant in (faults.not_propagated_messages, faults.format_mismatch, faults.id_truncated, faults.not_exported):
        plant(system)
    system.run()
    system.spans += system.spans[:20]
    return system


@pytest.fixture(scope="module")
def expected(system: System) -> dict[str, Any]:
    """What the audit says of the spans themselves."""
    document = audit(table(system.spans))
    assert document["chains"]["torn_off"] > 0
    assert document["findings"]
    assert document["input"]["duplicate_spans"] == 20
    return document


@pytest.mark.parametrize("name", FILES)
def test_every_format_tells_the_same_table(name: str, system: System, tmp_path: Path) -> None:
    FILES[name](tmp_path / name, system.spans)
    spans = read([str(tmp_path / name)])
    assert spans.input.damaged_records == spans.input.skipped_spans == 0
    assert content(spans) == content(table(as_told(system.spans, name)))


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_audit(name: str, system: System, expected: dict[str, Any], tmp_path: Path) -> None:
    FILES[name](tmp_path / name, system.spans)
    found = audit(read([str(tmp_path / name)]))
    for part in ("chains", "findings", "edges", "input"):
        assert found[part] == expected[part], part


def test_a_system_has_links_threads_destinations_and_databases(system: System) -> None:
    spans = table(system.spans)
    assert len(spans["link_row"]) > 0
    assert (spans["thread"] >= 0).any()
    assert (spans["destination"] > 0).any()
    assert (spans["subject"] > 0).any()
    assert spans["database"].any()
