from __future__ import annotations

import json
import random
from copy import deepcopy
from math import comb
from pathlib import Path
from typing import Any

import pytest

from tracefill.audit.compare import chance_of_less, compare

DATA = Path(__file__).parent / "data"
Document = dict[str, Any]


@pytest.fixture
def shop() -> Document:
    return json.loads((DATA / "shop.json").read_text())


@pytest.fixture
def mended() -> Document:
    return json.loads((DATA / "shop-mended.json").read_text())


def system(*edges: tuple[int, int], whole: int = 1000, total: int = 1000) -> Document:
    """A document with so many kept of so many calls on each edge."""
    return {
        "sources": [],
        "chains": {"whole": whole, "total": total, "share": whole / total},
        "findings": [],
        "edges": [
            {"from": "a", "to": f"b{number}", "layer": "calls", "via": "x", "library": "l", "kept": kept, "total": all_}
            for number, (kept, all_) in enumerate(edges)
        ],
    }


def by_target(comparison: Document) -> Document:
    return {edge["to"]: edge["verdict"] for edge in comparison["edges"]}


def test_mended_system_is_better_and_says_which_edges(shop: Document, mended: Document) -> None:
    comparison = compare(shop, mended)
    assert comparison["schema"] == "tracefill.compare/1"
    assert not comparison["worse"]
    assert comparison["chains"]["verdict"] == "better"
    assert (comparison["before"]["chains"]["whole"], comparison["after"]["chains"]["whole"]) == (1410, 1499)
    better = {target for target, verdict in by_target(comparison).items() if verdict == "better"}
    assert better == {"mailer", "payments", "reports"}
    assert by_target(comparison)["stock"] == "same", "3 and 1 lost of 1500 differ by chance"


def test_broken_revision_is_worse(shop: Document, mended: Document) -> None:
    comparison = compare(mended, shop)
    assert comparison["worse"]
    assert comparison["chains"]["verdict"] == "worse"
    assert comparison["edges"][0] | {"chance": 0} == {
        "from": "orders", "to": "mailer", "layer": "messages", "via": "orders.placed",
        "before": {"kept": 72, "total": 72}, "after": {"kept": 0, "total": 72}, "verdict": "worse", "chance": 0,
    }  # fmt: skip


def test_the_same_audit_twice_is_the_same(shop: Document) -> None:
    comparison = compare(shop, deepcopy(shop))
    assert not comparison["worse"]
    assert {edge["verdict"] for edge in comparison["edges"]} == {"same"}
    assert {finding["verdict"] for finding in comparison["findings"]} == {"stays"}


def test_findings_new_and_gone(shop: Document, mended: Document) -> None:
    verdicts = {finding["cause"]: finding["verdict"] for finding in compare(shop, mended)["findings"]}
    assert verdicts == {
        "not_propagated": "gone", "handoff_lost": "gone", "sampled_out": "gone",
        "not_exported": "stays", "premature_end": "stays", "clock_skew": "stays",
    }  # fmt: skip
    back = compare(mended, shop)["findings"]
    assert (back[0]["cause"], back[0]["verdict"], back[0]["before"], back[0]["after"]) == (
        "not_propagated",
        "new",
        0,
        72,
    )


def test_library_that_changed_is_not_another_edge() -> None:
    before, after = system((0, 50)), system((50, 50))
    after["edges"][0]["library"] = "tracefill.messages.kafka"
    assert by_target(compare(before, after)) == {"b0": "better"}


def test_edges_of_two_libraries_are_added_up() -> None:
    before, after = system((10, 10)), system((10, 10))
    after["edges"].append(after["edges"][0] | {"library": "other", "kept": 0, "total": 90})
    assert compare(before, after)["edges"][0]["after"] == {"kept": 10, "total": 100}


def test_edge_that_only_one_side_has_is_new_or_gone_and_not_worse() -> None:
    comparison = compare(system((5, 5)), system((5, 5), (0, 5)))
    assert by_target(comparison) == {"b0": "same", "b1": "new"}
    assert not comparison["worse"]
    assert by_target(compare(system((5, 5), (0, 5)), system((5, 5)))) == {"b0": "same", "b1": "gone"}


def test_small_edge_that_broke_altogether_is_worse_though_the_chains_hardly_show_it() -> None:
    comparison = compare(
        system((9990, 9990), (20, 20), whole=9990, total=10_000),
        system((9990, 9990), (0, 20), whole=9980, total=10_000),
    )
    assert comparison["chains"]["verdict"] == "same"
    assert comparison["worse"]


def test_canary_with_a_handful_of_chains_is_not_condemned_by_one_loss() -> None:
    assert not compare(system(whole=9_900, total=10_000), system(whole=29, total=30))["worse"]


def test_nothing_to_compare_is_the_same() -> None:
    empty = {"sources": [], "chains": {"whole": 0, "total": 0, "share": None}, "findings": [], "edges": []}
    assert compare(empty, system((5, 5)))["chains"]["verdict"] == "same"
    assert not compare(system((5, 5)), empty)["worse"]


def test_chance_is_the_exact_sum_of_binomials() -> None:
    chosen = random.Random(7)
    for _ in range(300):
        total, of_total = chosen.randint(1, 40), chosen.randint(1, 40)
        kept, of_kept = chosen.randint(0, total), chosen.randint(0, of_total)
        both, everything = kept + of_kept, total + of_total
        ways = sum(comb(both, some) * comb(everything - both, total - some) for some in range(kept + 1))
        assert chance_of_less(kept, total, of_kept=of_kept, of_total=of_total) == pytest.approx(
            ways / comb(everything, total), rel=1e-9
        )


def test_chance_of_billions_is_quick_and_sane() -> None:
    billion = 10**9
    assert 0.4 < chance_of_less(998_000_000, billion, of_kept=998_000_100, of_total=billion) < 0.5
    assert chance_of_less(900_000_000, billion, of_kept=998_000_000, of_total=billion) == 0.0


def test_chance_alone_seldom_calls_a_revision_worse() -> None:
    """Two hundred pairs drawn from one and the same system, ten edges each: 1 % of them may be called worse."""
    chosen = random.Random(11)

    def drawn() -> Document:
        edges = [(sum(chosen.random() < 0.97 for _ in range(200)), 200) for _ in range(10)]
        return system(*edges, whole=sum(chosen.random() < 0.95 for _ in range(500)), total=500)

    assert sum(compare(drawn(), drawn())["worse"] for _ in range(200)) <= 6
