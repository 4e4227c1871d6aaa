"""Whole systems: each planted cause is found with its edge and count, nothing else is, and the chains are counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit import faults
from tests.audit.systems import BEGIN, MILLISECOND, SECOND, Span, System, table
from tests.audit.test_causes import around, call, client, lost_call, render, server
from tracefill.audit.causes import BREAKS
from tracefill.audit.chains import audit
from tracefill.audit.spans import concat

Fault = Callable[[System], None]
INSIDE = [faults.handoff_lost, faults.glued, faults.premature_end, faults.unfinished_stream]
TREES = [faults.duplicate_id, faults.several_roots, faults.cycle]


def planted(seed: int, *plan: Fault) -> System:
    system = System(seed, requests=120)
    for fault in plan:
        fault(system)
    return system.run()


def counted(document: dict[str, Any]) -> Counter[tuple[str, ...]]:
    words = ("cause", "layer", "from", "to", "via", "library")
    return Counter({tuple(f[word] for word in words): f["count"] for f in document["findings"]})


def check(system: System) -> None:
    document = audit(table(system.spans))
    assert counted(document) == system.truth
    chains = document["chains"]
    assert (chains["whole"], chains["total"], chains["torn_off"]) == (system.whole, system.total, system.torn_off)
    assert chains["begun_outside"] == system.begun_outside
    assert document["window"]["left_out"] == system.left_out


@pytest.mark.parametrize("seed", range(100, 112))
def test_nothing_breaks_in_a_system_without_faults(seed: int) -> None:
    system = planted(seed)
    assert {key[0] for key in system.truth} <= {"clock_skew"}
    assert system.whole == system.total
    check(system)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.__name__)
def test_planted_cause_is_found(fault: Fault, seed: int) -> None:
    check(planted(seed, fault))


def test_every_cause_is_planted() -> None:
    causes = {key[0] for fault in faults.ALL for seed in range(3) for key in planted(seed, fault).truth}
    assert causes == set(BREAKS)


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_several_kinds_are_told_apart(seed: int) -> None:
    dice = random.Random(seed)
    plan = [faults.not_propagated_messages, *dice.sample(INSIDE, 3), *dice.sample(TREES, 2), faults.exported_twice]
    check(planted(seed, *plan))


# --- the document ---


def test_document_does_not_depend_on_the_order_of_the_spans() -> None:
    system = planted(3, faults.handoff_lost, faults.duplicate_id, faults.exported_twice)
    documents = []
    for _ in range(3):
        random.shuffle(system.spans)
        documents.append(audit(table(system.spans), examples=None))
    assert documents[0] == documents[1] == documents[2]


def test_audit_of_the_same_table_says_the_same_again() -> None:
    spans = table(planted(3, faults.exported_twice).spans)
    assert audit(spans) == audit(spans)


def test_parts_read_apart_say_the_same_as_the_whole() -> None:
    spans = planted(3, faults.not_propagated).spans
    parts = [table(spans[:1000]), table(spans[1000:1001]), table([]), table(spans[1001:])]
    assert audit(concat(parts)) == audit(table(spans))


def test_no_spans_at_all() -> None:
    document = audit(table([]))
    assert document["chains"] == {"whole": 0, "total": 0, "share": 1.0, "torn_off": 0, "begun_outside": 0}
    assert (document["findings"], document["edges"], document["over_time"]) == ([], [], [])


def test_input_names_what_could_not_be_read() -> None:
    spans = table(call(1))
    spans.input.skipped_spans = 2
    spans.input.add_damaged("spans.jsonl", 812, "not JSON")
    assert audit(spans)["input"] == {
        "spans": 3,
        "duplicate_spans": 0,
        "skipped_spans": 2,
        "damaged_records": 1,
        "damaged": [{"file": "spans.jsonl", "record": 812, "reason": "not JSON"}],
    }


def test_findings_have_every_word_of_the_contract() -> None:
    [finding] = audit(table(lost_call(1)))["findings"]
    words = "cause breaks layer from to via library count also_possible evidence cure examples"
    assert list(finding) == words.split()
    assert set(finding["cure"]) == {"text", "config"}


@pytest.mark.parametrize(("examples", "shown"), [(3, 3), (0, 0), (1, 1), (None, 9)])
def test_examples_are_as_many_as_asked_for(examples: int | None, shown: int) -> None:
    [finding] = audit(table(s for n in range(9) for s in lost_call(n, at=100 * n)), examples=examples)["findings"]
    assert (len(finding["examples"]), finding["count"]) == (shown, 9)


def test_edges_count_what_is_kept_and_what_breaks_there() -> None:
    spans = [s for n in range(4) for s in call(n, at=100 * n)] + lost_call(10, at=1000)
    document = audit(table(spans))
    assert document["edges"] == [
        {
            "from": "web",
            "to": "orders",
            "layer": "calls",
            "via": "POST /orders",
            "library": "opentelemetry.instrumentation.flask",
            "kept": 4,
            "total": 5,
        }
    ]
    assert document["by_layer"] == [{"layer": "calls", "kept": 4, "total": 5}]
    assert document["by_library"] == [{"library": "opentelemetry.instrumentation.flask", "kept": 4, "total": 5}]
    assert document["by_destination"] == []


def test_completeness_over_time_counts_each_chain_where_it_began() -> None:
    spans = [*call(1, at=100_000), *lost_call(2, at=-500_000), render(3, 2, 7, at=-999_000), *around()]
    steps = audit(table(spans))["over_time"]
    assert len(steps) == 60
    assert (sum(s["whole"] for s in steps), sum(s["total"] for s in steps)) == (3, 4)
    [broken] = [s for s in steps if s["whole"] < s["total"]]
    length = int(steps[1]["start_unix_nano"]) - int(steps[0]["start_unix_nano"])
    assert 0 <= BEGIN - 500 * SECOND - int(broken["start_unix_nano"]) < length


def test_torn_traces_of_one_chain_are_one_chain() -> None:
    """web calls orders, which calls stock: both calls are torn."""
    spans = [
        *lost_call(1),
        client(500_001, 4, 3, service="orders", to="stock", at=12, ms=10),
        server(700_000, 1, service="stock", at=14, ms=5),
        *call(2, at=500),
    ]
    chains = audit(table(spans))["chains"]
    assert (chains["whole"], chains["total"], chains["torn_off"], chains["share"]) == (1, 2, 2, 0.5)


# --- whatever comes ---


def weird_span(draw: Callable[[Any], Any]) -> Span:
    small = st.integers(0, 4)
    start = BEGIN + draw(st.integers(0, 50)) * 100 * MILLISECOND
    attributes = draw(
        st.sampled_from(
            [{}, {"db.system": "x"}, {"server.address": "a"}, {"thread.id": 1}, {"messaging.destination": "t"}]
        )
    )
    return Span(
        trace_id=draw(st.sampled_from([1, 2, 1 << 64 | 1, 1 << 64 | 2, 3 << 64 | 3])),
        span_id=draw(st.integers(1, 6)),
        parent_id=draw(st.integers(0, 6)),
        name=draw(st.sampled_from("ab")),
        kind=draw(st.integers(0, 5)),
        service=draw(st.sampled_from(["a", "b", ""])),
        instance=draw(st.sampled_from(["", "1"])),
        start=start,
        end=start + draw(small) * 200 * MILLISECOND,
        attributes=dict(attributes),
        links=draw(st.lists(st.tuples(st.sampled_from([1, 1 << 64 | 2]), st.integers(1, 6)), max_size=2)),
    )


weird_systems = st.lists(st.composite(weird_span)(), max_size=14)


@settings(deadline=None, max_examples=300)
@given(weird_systems, st.randoms(use_true_random=False))
def test_any_spans_make_a_document_that_adds_up(spans: list[Span], dice: random.Random) -> None:
    document = audit(table(spans), examples=None)
    chains, traces = document["chains"], {span.trace_id for span in spans}
    assert 0 <= chains["whole"] <= chains["total"]
    assert chains["total"] == len(traces) - chains["torn_off"] - document["window"]["left_out"]
    assert (chains["whole"] < chains["total"]) == any(f["breaks"] for f in document["findings"])
    assert document["input"]["spans"] + document["input"]["duplicate_spans"] == len(spans)
    for finding in document["findings"]:
        assert finding["count"] >= len(finding["examples"]) > 0
    for edge in document["edges"]:
        assert 0 <= edge["kept"] <= edge["total"]
    dice.shuffle(spans)
    assert audit(table(spans), examples=None) == document
