from __future__ import annotations

from typing import Any

from tracefill.audit.spans import Spans, SpansBuilder
from tracefill.audit.waterfall import CHAINS, ROWS, waterfalls

SECOND = 10**9


def table(*spans: tuple[int, int, int, int, int, str]) -> Spans:
    """Spans of (trace, span, parent, start second, end second, name), all of the service `shop`."""
    builder = SpansBuilder()
    service = builder.intern("shop")
    for trace, span, parent, start, end, name in spans:
        builder.append(
            trace_id_high=1, trace_id_low=trace, span_id=span, parent_id=parent, start=start * SECOND, end=end * SECOND,
            name=builder.intern(name), service=service,
        )  # fmt: skip
    return builder.build()


def place(trace: int, span: int) -> dict[str, str]:
    return {"trace_id": f"{1:016x}{trace:016x}", "span_id": f"{span:016x}"}


def finding(cause: str, *examples: dict[str, Any], count: int = 1, breaks: bool = True) -> dict[str, Any]:
    names = {"cause": cause, "breaks": breaks, "from": "shop", "to": "mailer", "via": "orders.placed"}
    return names | {"count": count, "examples": list(examples)}


def outline(chain: dict[str, Any]) -> list[str]:
    return [f"{'  ' * span['depth']}{span['name']}{'!' if span['broken'] else ''}" for span in chain["spans"]]


def test_torn_off_trace_hangs_where_it_should() -> None:
    spans = table((7, 1, 0, 0, 9, "order"), (7, 2, 1, 2, 3, "send"), (7, 3, 1, 4, 5, "pay"), (8, 4, 0, 3, 6, "mail"))
    (chain,) = waterfalls(spans, {"findings": [finding("not_propagated", place(8, 4) | {"near": place(7, 2)})]})
    assert outline(chain) == ["order", "  send", "    mail!", "  pay"]
    assert chain["spans"][2] == place(8, 4) | {
        "service": "shop", "name": "mail", "start_ns": 3 * SECOND, "duration_ns": 3 * SECOND,
        "depth": 2, "broken": "not_propagated",
    }  # fmt: skip
    assert (chain["cause"], chain["to"], chain["spans_left_out"]) == ("not_propagated", "mailer", 0)
    assert (chain["start_unix_nano"], chain["duration_ns"]) == ("0", 9 * SECOND)


def test_chain_torn_twice_is_shown_from_its_beginning() -> None:
    spans = table((7, 1, 0, 0, 9, "order"), (8, 2, 0, 3, 6, "mail"), (9, 3, 0, 4, 5, "smtp"))
    first, second = place(8, 2) | {"near": place(7, 1)}, place(9, 3) | {"near": place(8, 2)}
    (chain,) = waterfalls(
        spans, {"findings": [finding("handoff_lost", second, count=2), finding("not_propagated", first)]}
    )
    assert outline(chain) == ["order", "  mail!", "    smtp!"]


def test_other_traces_are_left_alone() -> None:
    spans = table((7, 1, 0, 0, 9, "order"), (8, 1, 0, 0, 9, "another"))
    (chain,) = waterfalls(spans, {"findings": [finding("not_exported", place(7, 1))]})
    assert outline(chain) == ["order!"]


def test_missing_parent_makes_a_top() -> None:
    spans = table((7, 2, 99, 2, 3, "child"), (7, 3, 2, 2, 3, "grandchild"), (7, 1, 0, 1, 9, "order"))
    (chain,) = waterfalls(spans, {"findings": [finding("not_exported", place(7, 2))]})
    assert outline(chain) == ["order", "child!", "  grandchild"]


def test_circle_is_shown_once() -> None:
    spans = table((7, 1, 2, 0, 9, "a"), (7, 2, 1, 1, 8, "b"), (7, 3, 3, 2, 3, "own parent"), (7, 4, 2, 3, 4, "below"))
    (chain,) = waterfalls(spans, {"findings": [finding("cycle", place(7, 1))]})
    assert sorted(span["name"] for span in chain["spans"]) == ["a", "b", "below", "own parent"]


def test_span_that_came_twice_is_shown_once_and_an_id_used_twice_is_shown_twice() -> None:
    twice = (7, 2, 1, 2, 3, "send")
    spans = table((7, 1, 0, 0, 9, "order"), twice, twice, (7, 2, 1, 4, 5, "other"))
    (chain,) = waterfalls(spans, {"findings": [finding("duplicate_id", place(7, 2))]})
    assert outline(chain) == ["order", "  send!", "  other!"]


def test_long_chain_keeps_what_is_broken_and_what_is_above_it() -> None:
    spans = table(
        (7, 1, 0, 0, 999, "top"), *((7, n, 1, n, n + 1, f"n{n}") for n in range(2, 300)), (7, 300, 299, 299, 300, "x")
    )
    (chain,) = waterfalls(spans, {"findings": [finding("not_exported", place(7, 300))]})
    assert len(chain["spans"]) == ROWS
    assert outline(chain)[:2] == ["top", "  n2"]
    assert outline(chain)[-2:] == ["  n299", "    x!"]
    assert chain["spans_left_out"] == 300 - ROWS


def test_worst_findings_come_first_each_chain_once_and_harmless_ones_not_at_all() -> None:
    spans = table(*((trace, 1, 0, 0, 1, f"t{trace}") for trace in range(30)))
    findings = [finding("not_exported", place(trace, 1), count=trace) for trace in range(20)]
    findings += [finding("several_roots", place(19, 1)), finding("clock_skew", place(25, 1), count=99, breaks=False)]
    drawn = waterfalls(spans, {"findings": findings})
    assert [chain["spans"][0]["name"] for chain in drawn] == [f"t{19 - number}" for number in range(CHAINS)]


def test_finding_without_examples_or_without_its_spans_draws_nothing() -> None:
    assert (
        waterfalls(table((7, 1, 0, 0, 1, "x")), {"findings": [finding("cycle"), finding("cycle", place(9, 9))]}) == []
    )
