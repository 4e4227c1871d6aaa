from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tracefill.audit.compare import compare
from tracefill.audit.report import render, render_comparison

DATA = Path(__file__).parent / "data"
Document = dict[str, Any]


@pytest.fixture
def shop() -> Document:
    return json.loads((DATA / "shop.json").read_text())


@pytest.fixture
def mended() -> Document:
    return json.loads((DATA / "shop-mended.json").read_text())


def printed(document: Document, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, highlight=False, force_terminal=colour, color_system="standard" if colour else None
    )
    (render_comparison if document["schema"].startswith("tracefill.compare") else render)(document, console)
    return out.getvalue()


def test_headline_comes_first(shop: Document) -> None:
    assert printed(shop).splitlines()[0] == "1410 of 1500 chains whole (94.0 %)"


@pytest.mark.parametrize(("whole", "total", "said"), [
    (1500, 1500, "1500 of 1500 chains whole (100.0 %)"),
    (19_999, 20_000, "19999 of 20000 chains whole (99.9 %)"),
    (1, 20_000, "1 of 20000 chains whole (0.1 %)"),
    (0, 20_000, "0 of 20000 chains whole (0.0 %)"),
    (0, 0, "0 of 0 chains whole (-)"),
])  # fmt: skip
def test_share_is_never_rounded_up_to_all_or_down_to_none(shop: Document, whole: int, total: int, said: str) -> None:
    shop["chains"] |= {"whole": whole, "total": total}
    assert printed(shop).splitlines()[0] == said


def test_what_was_left_out_is_said(shop: Document) -> None:
    head = printed(shop).split("\n\n")[0]
    assert "18204 spans from 2026-01-01 00:00:00 to 2026-01-01 00:30:00 UTC" in head
    assert "3 chains not judged, within 30 s of the window's edges" in head
    assert "spans.jsonl, record 812: not JSON: unexpected end at column 5012" in head
    assert "skipped: no valid ids" not in head, "there are none"


def test_finding_holds_all_that_is_needed_to_mend_it(shop: Document) -> None:
    text = printed(shop)
    block = text[text.index("72 x not_propagated") :].split("\n\n")[0]
    assert re.sub(r"\s+", " ", block).strip() == (
        "72 x not_propagated: the caller did not send its context"
        " where orders -> mailer via orders.placed (messages)"
        " library opentelemetry.instrumentation.kafka"
        " seen 72 of 72 messages began a new trace; mailer continues the context of others"
        " or maybe not_extracted"
        " example span 00f067aa0ba902b7 of trace 4bf92f3577b34da6a3ce929d0e0e4736"
        " near span b7ad6b7169203331 of trace a3ce929d0e0e47364bf92f3577b34da6"
        " cure wrap the producer tracefill.install(only=['kafka'])"
    )


def test_findings_stand_worst_first_and_those_that_break_before_those_that_do_not(shop: Document) -> None:
    shop["findings"].reverse()
    causes = re.findall(r"^\d+ x (\w+)", printed(shop), re.MULTILINE)
    assert causes == ["not_propagated", "sampled_out", "handoff_lost", "not_exported", "premature_end", "clock_skew"]


def test_edges_stand_worst_first_with_both_numbers(shop: Document) -> None:
    text = printed(shop, width=200)
    assert re.search(r"0 of 72 +0\.0 % +messages +orders -> mailer via orders\.placed", text)
    assert text.index("orders -> mailer") < text.index("orders -> payments") < text.index("web -> catalog")


def test_lines_fit_into_80_columns(shop: Document) -> None:
    shop["edges"][0]["via"] = "x" * 300
    assert max(map(len, printed(shop).splitlines())) <= 80


def test_line_of_a_cure_is_never_wrapped(shop: Document) -> None:
    long = f"OTEL_PROPAGATORS={','.join(['tracecontext'] * 20)}"
    shop["findings"][0]["cure"]["config"] = f"{long}\nsecond line"
    lines = [line.strip() for line in printed(shop).splitlines()]
    assert lines[lines.index(long) + 1] == "second line"


def test_colour_adds_no_words(shop: Document) -> None:
    coloured = printed(shop, colour=True)
    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == printed(shop)


def test_strangers_names_move_no_cursor_and_are_no_markup(shop: Document) -> None:
    for where in (shop["edges"][0], shop["findings"][0]):
        where["from"] = "[red]shop[/red]\x1b[2J\r\n\u202e:smile:"
    shop["findings"][0]["cure"]["config"] = "[red]line[/red]\x1b[2J"
    text = printed(shop, width=200)
    assert r"[red]line[/red]\x1b[2J" in text
    assert r"[red]shop[/red]\x1b[2J\r\n\u202e:smile:" in text
    assert "\x1b" not in text


def test_nothing_wrong_is_said_so(shop: Document) -> None:
    clean = shop | {"findings": [], "chains": shop["chains"] | {"whole": 1500, "share": 1.0}}
    assert printed(clean).rstrip().endswith("Nothing breaks.")


def test_comparison_says_both_and_what_changed(shop: Document, mended: Document) -> None:
    text = printed(compare(mended, shop), width=120)
    assert text.splitlines()[:5] == [
        "before: 1499 of 1500 chains whole (99.9 %)",
        "        mended.jsonl",
        "after:  1410 of 1500 chains whole (94.0 %)",
        "        shop.jsonl, shop-2.jsonl",
        "WORSE: more than chance explains",
    ]
    assert re.search(r"worse +72 of 72 +100\.0 % +0 of 72 +0\.0 % +orders -> mailer via orders\.placed", text)
    assert re.search(r"new +0 +72 +not_propagated +orders -> mailer via orders\.placed", text)
    assert "web -> catalog via GET /items" not in text.split("Findings")[0], "what stays the same is not listed"
    assert "5 edges without a difference beyond chance" in text


def test_comparison_of_the_same_says_so(shop: Document) -> None:
    text = printed(compare(shop, shop))
    assert "not worse" in text.splitlines()[4]
