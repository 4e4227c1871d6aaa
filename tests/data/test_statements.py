from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

from tracefill.data import statements
from tracefill.data.statements import masked, summary

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("system", "text", "expected"),
    [
        ("sqlite", "select 'it''s', 1.5, .5, 0x1F, 1e-9, -3 from t1", "select ?, ?, ?, ?, ?, -? from t1"),
        ("postgresql", "select $1, :2, %(a1)s, ?3, @p4, a::int4", "select $1, :2, %(a1)s, ?3, @p4, a::int4"),
        ("postgresql", "select $$a 'b$$, $x$ $$ $x$, E'a\\'b'", "select ?, ?, ?"),
        ("postgresql", "select 'C:\\', secret_column", "select ?, secret_column"),
        ("postgresql", 'select "a\'b" from "t-1"', 'select "a\'b" from "t-1"'),
        ("mysql", "select 'it\\'s', \"double \\\" quoted\", `a'b`", "select ?, ?, `a'b`"),
        ("mysql", "select 1 # secret\n, 2 -- secret\n, 3--4", "select ?  \n, ?  \n, ?--?"),
        ("sqlite", "select 'cut off", "select ?"),
        ("sqlite", "/* tenant 17 */ select 1 -- 18", "select ?"),
        ("sqlite", "a/**/b", "a b"),
        ("sqlite", "", ""),
    ],
)
def test_literals_are_masked_as_the_database_reads_them(system: str, text: str, expected: str) -> None:
    assert masked(text, system) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select * from orders o join lines using (id)", "SELECT orders"),
        ("(select 1) union (select 2)", "SELECT"),
        ("insert into shop.orders values (1)", "INSERT shop.orders"),
        ("select extract(year from created) from orders", "SELECT orders"),
        ("create table if not exists t (a)", "CREATE t"),
        ("/* hint */ delete from only t", "DELETE t"),
        ('update "orders" set a = 1', "UPDATE orders"),
        ("copy t from stdin", "COPY t"),
        ("select a is distinct from b from t", "SELECT t"),
        ("select 'from x'", "SELECT"),
        ("begin", "BEGIN"),
        ("  ", ""),
        ("17", ""),
    ],
)
def test_summary_is_the_operation_and_its_table(text: str, expected: str) -> None:
    assert summary(text) == expected


def quoted(system: str) -> st.SearchStrategy[str]:
    """Ways to write a string that holds the secret, among what such strings may hold."""
    inside = st.text("ab'\"\\$-/*#\n ", max_size=8)
    single = st.tuples(inside, inside).map(lambda two: SECRET.join(two))
    if system == "mysql":
        escaped = single.map(lambda text: text.replace("\\", "\\\\").replace("'", "\\'").replace('"', '\\"'))
        return st.one_of(escaped.map(lambda text: f"'{text}'"), escaped.map(lambda text: f'"{text}"'))
    standard = single.map(lambda text: "'" + text.replace("'", "''") + "'")
    if system == "sqlite":
        return standard
    dollars = single.map(lambda text: "$q$" + text.replace("$", "") + "$q$")
    escaped = single.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
    return st.one_of(standard, dollars, escaped)


@pytest.mark.parametrize("system", ["sqlite", "postgresql", "mysql"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_literal_is_ever_shown_in_whole_or_cut_off(system: str, data: Any) -> None:
    around = st.sampled_from(
        ["select", "a", "=", "(", ")", ",", "1", "-- x '\n", "/* ' */", "`t`", "x.y", "$1", "?", "%s"]
    )
    parts = data.draw(st.lists(st.one_of(around, quoted(system)), max_size=12))
    text = " ".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    for shown in (masked(text, system), masked(text[:cut], system)):
        assert "s3c" not in shown


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_described_and_bounded(text: str) -> None:
    for system in ("sqlite", "mysql"):
        assert len(masked(text * 100, system)) <= statements.TEXT_LENGTH
        summary(text, system)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc 0123456789'-/*\n", max_size=60))
def test_text_without_literals_and_comments_is_shown_as_it_was(text: str) -> None:
    plain = re.sub(r"['\d*/-]", "", text)
    assert masked(plain) == plain.strip()


def test_masked_statement_of_one_that_ran_is_still_read_by_sqlite() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (a)")
    shown = masked("select a, 'x' /* y */ from t where a > 17 -- z", "sqlite")
    assert connection.execute(shown, ("x", 17)).fetchall() == []


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of span, event, got 'log'"):
        statements.configure(form="log")


def test_literals_are_shown_only_when_asked_for(spans: Any) -> None:
    statements.configure(mask=False)
    try:
        with statements.scope(statements.Tracer("t"), "sqlite", "select 17"):
            pass
    finally:
        statements.configure()
    assert spans.get_finished_spans()[0].attributes["db.query.text"] == "select 17"


def test_quiet_is_quiet_for_everybody() -> None:
    with statements.quiet():
        assert statements.begin(statements.Tracer("t"), "sqlite", "select 1") is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_statement_of_a_span_that_has_ended_is_no_statement_in_progress(spans: Any) -> None:
    tracer = statements.Tracer("t")
    done = statements.begin(tracer, "sqlite", "select 1")
    assert done is not None
    done.end()
    with trace.use_span(done._span), statements.scope(tracer, "sqlite", "select 2"):
        pass
    assert len(spans.get_finished_spans()) == 2
