from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.audit import browser
from tracefill.audit.html import page
from tracefill.audit.markup import Markup, element
from tracefill.audit.service_map import SERVICES_SHOWN, service_map, services_left_out

DATA = Path(__file__).parent / "data"
Document = dict[str, Any]
HOSTILE = (
    "</title><script>console.log('taken over')</script><img src=x onerror=console.log(1)>\"'&\x1b[2J\x00\ud800\u202e"
)


@pytest.fixture
def shop() -> Document:
    return json.loads((DATA / "shop.json").read_text())


@pytest.fixture
def hostile(shop: Document) -> Document:
    """Every text in the document is one that breaks out, if it is not escaped."""
    return _replace_texts(shop)


def _replace_texts(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _replace_texts(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_replace_texts(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and not key.endswith("_unix_nano") else value


class Outline(HTMLParser):
    """The elements of a page, and whether each is closed where it was opened."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# --- what it says ---


def test_headline_says_both_numbers_and_the_share(shop: Document) -> None:
    text = re.sub(r"<[^>]+>", "", page(shop))
    assert "1410 of 1500 chains whole: 94.0 %" in text


def test_page_names_what_was_audited(shop: Document) -> None:
    assert "tracefill audit of shop.jsonl, shop-2.jsonl<" in page(shop)
    many = shop | {"sources": [f"{number}.jsonl" for number in range(90)]}
    assert "4.jsonl and 85 more<" in page(many)


def test_chart_shows_a_loss_of_one_in_a_thousand_and_calls_it_by_its_size(shop: Document) -> None:
    shop["over_time"] = [
        {"start_unix_nano": str(number * 10**9), "whole": 1000 - (number == 3), "total": 1000} for number in range(9)
    ]
    written = page(shop)
    assert "Completeness in 9 steps of time; the lowest is 99.9 %." in written
    assert ">99 %</text>" in written, "the scale fits the loss"
    assert re.findall(r'height="([\d.]+)" class="lost"', written) == ["0"] * 3 + ["15"] + ["0"] * 5


def test_each_finding_has_cause_evidence_and_the_exact_line_of_its_cure(shop: Document) -> None:
    written = page(shop)
    for finding in shop["findings"]:
        assert f">{finding['cause']}</strong>" in written
        assert finding["evidence"].replace("'", "&#x27;") in written
        assert f"<code>{finding['cure']['config']}</code>".replace("'", "&#x27;") in written


def test_findings_stand_worst_first(shop: Document) -> None:
    shop["findings"].reverse()
    causes = re.findall(r">(\w+)</strong><p>", page(shop))
    assert causes == ["not_propagated", "sampled_out", "handoff_lost", "not_exported", "premature_end", "clock_skew"]


def test_parts_without_data_are_left_out(shop: Document) -> None:
    parts = ("findings", "edges", "over_time", "by_layer", "by_library", "by_destination", "waterfalls")
    bare = shop | {part: [] for part in parts}
    outline = Outline(page(bare))
    assert [section["id"] for section in outline.of("section")] == ["findings"]
    assert "every chain is whole" in page(bare | {"chains": bare["chains"] | {"whole": 1500}})


def test_page_is_well_formed_and_its_references_hold(shop: Document) -> None:
    outline = Outline(page(shop))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed_at = [a[name] for _, a in outline.elements for name in ("aria-labelledby",) if name in a]
    pointed_at += [a["href"][1:] for a in outline.of("a") if a["href"]]
    assert set(pointed_at) <= set(ids)


def test_keyboard_and_screen_reader_find_their_way(shop: Document) -> None:
    outline = Outline(page(shop))
    assert {tag for tag, _ in outline.elements} >= {"header", "nav", "main", "footer", "h1", "h2"}
    assert outline.of("html") == [{"lang": "en"}]
    first_link = outline.of("a")[0]
    assert first_link == {"class": "skip", "href": "#report"}
    assert all(head.get("scope") in ("col", "row") for head in outline.of("th"))
    assert all(drawing["role"] == "img" and drawing["aria-labelledby"] for drawing in outline.of("svg"))
    scrolling = [a for _, a in outline.elements if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolling)


# --- what it must not do ---


def test_nothing_is_fetched_and_nothing_is_run(shop: Document) -> None:
    outline = Outline(page(shop))
    assert outline.of("script") == []
    assert [link["href"] for link in outline.of("link")] == ["data:,"]
    assert not [a for _, a in outline.elements if "src" in a]
    assert all(a["href"].startswith("#") for a in outline.of("a") if a["href"])
    assert "url(" not in page(shop).replace("url(#arrow-", "")
    policy = next(meta["content"] for meta in outline.of("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_strangers_names_are_text_and_never_markup(shop: Document, hostile: Document) -> None:
    same = page(shop), page(hostile)
    harmless, attacked = (Outline(text) for text in same)
    assert attacked.of("script") == attacked.of("img") == []
    assert {tag for tag, _ in attacked.elements} == {tag for tag, _ in harmless.elements}
    assert not [a for _, a in attacked.elements if any(name.startswith("on") for name in a)]
    assert not re.search("[\x00-\x09\x0b-\x1f\ud800\u202e]", same[1])
    same[1].encode()


def test_element_escapes_text_and_attributes_but_not_markup() -> None:
    assert element("b", "<i>", Markup("<u></u>"), title='"<', aria_label="x", gone=None) == (
        '<b title="&quot;&lt;" aria-label="x">&lt;i&gt;<u></u></b>'
    )
    assert element("rect", x=1.0, y=2.50, z=0) == '<rect x="1" y="2.5" z="0"></rect>'


# --- the map ---


def links(*pairs: tuple[str, str], kept: int = 5) -> Document:
    edges = [
        {"from": a, "to": b, "layer": "calls", "via": "", "library": "", "kept": kept, "total": 5} for a, b in pairs
    ]
    return {"edges": edges, "findings": []}


def boxes(drawing: str) -> dict[str, tuple[float, float]]:
    """Where each service stands, by its name."""
    found = re.findall(r'<title>([^<:]+)</title><rect x="([\d.]+)" y="([\d.]+)"', drawing)
    return {name: (float(x), float(y)) for name, x, y in found}


def test_callers_stand_left_of_those_they_call() -> None:
    at = boxes(str(service_map(links(("web", "orders"), ("orders", "stock"), ("web", "stock"), ("web", "catalog")))))
    assert at["web"][0] < at["orders"][0] < at["stock"][0]
    assert at["catalog"][0] == at["orders"][0]


def test_boxes_of_a_large_system_do_not_touch() -> None:
    pairs = [(f"s{a}", f"s{(a * 7 + b * 5) % 30}") for a in range(30) for b in range(1, 4)]
    at = list(boxes(str(service_map(links(*pairs)))).values())
    assert len(at) == 30
    for number, (x, y) in enumerate(at):
        assert all(abs(x - other_x) > 156 or abs(y - other_y) > 40 for other_x, other_y in at[number + 1 :])


def test_circles_are_drawn_once_each_way() -> None:
    drawing = str(service_map(links(("a", "b"), ("b", "a"), ("b", "c"), ("c", "a"))))
    assert len(boxes(drawing)) == 3
    assert drawing.count("marker-end") + drawing.count("marker-start") == 4


def test_broken_link_is_red_dashed_and_labelled(shop: Document) -> None:
    drawing = str(service_map(shop))
    assert '<g class="link broken"><title>orders to mailer: 0 of 72 kept</title>' in drawing.replace("  ", " ")
    assert ">0.0 %</text>" in drawing
    assert "reports: 15 torn inside" in drawing
    assert '<g class="link whole"><title>web to orders: 1500 of 1500 kept</title>' in drawing


def test_map_says_in_words_what_it_shows(shop: Document) -> None:
    said = re.search(r'<title id="map-said">([^<]+)<', str(service_map(shop)))
    assert said
    assert said[1].startswith(
        "9 services, 8 links. orders to mailer: 0 of 72 kept; orders to payments: 1480 of 1500 kept;"
    )


def test_too_many_services_leave_the_broken_ones() -> None:
    many = links(*((f"hub{n % 9}", f"leaf{n}") for n in range(200)))
    many["edges"].append(links(("lost", "found"), kept=0)["edges"][0])
    assert services_left_out(many) == 211 - SERVICES_SHOWN
    assert {"lost", "found"} <= boxes(str(service_map(many))).keys()


def test_no_map_where_nobody_calls_anybody(shop: Document) -> None:
    assert service_map(links()) is None
    assert service_map(links(("a", "a"))) is None


# --- the colours ---


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#\w+)", block))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_reaches_AA(scheme: int) -> None:
    style = (files("tracefill.audit") / "report.html").read_text(encoding="utf-8")
    shades = colours(re.findall(r":root \{([^}]+)\}", style)[scheme])
    for text in ("ink", "quiet", "broken", "whole", "link"):
        for ground in ("page", "card"):
            assert contrast(shades[text], shades[ground]) >= 4.5, (text, ground)
    assert contrast(shades["broken"], shades["broken-back"]) >= 4.5
    for mark in ("calm", "broken", "whole"):
        assert contrast(shades[mark], shades["card"]) >= 3, mark


# --- in a browser ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if browser.chromium() is None:
        if os.environ.get("TRACEFILL_REQUIRE_SERVERS") == "1":
            pytest.fail("Chromium must be here")
        pytest.skip("no Chromium here")
    return tmp_path


@pytest.mark.parametrize("width", [1280, 480])
@pytest.mark.parametrize(("dark", "background"), [(False, "#ffffff"), (True, "#0f1419")])
def test_browser_draws_the_page_and_complains_of_nothing(
    shop: Document, folder: Path, width: int, dark: bool, background: str
) -> None:
    (folder / "page.html").write_text(page(shop))
    drawn = browser.picture(folder / "page.html", folder, width=width, dark=dark)
    assert drawn.console == []
    assert drawn.corner == background
    assert drawn.different_lines > 300


def test_browser_runs_nothing_of_what_strangers_sent(hostile: Document, folder: Path) -> None:
    (folder / "page.html").write_text(page(hostile))
    assert browser.picture(folder / "page.html", folder).console == []


def test_console_is_heard_when_it_complains(folder: Path) -> None:
    """The tests above could not fail otherwise."""
    (folder / "page.html").write_text("<body style='background: #123456'><script>console.error('heard')</script>")
    drawn = browser.picture(folder / "page.html", folder, height=300)
    assert any("heard" in line for line in drawn.console)
    assert drawn.corner == "#123456"
    assert drawn.different_lines < 10


@pytest.mark.parametrize("width", [1280, 500])
def test_page_is_never_wider_than_the_window(shop: Document, folder: Path, width: int) -> None:
    shop["findings"][0]["cure"]["config"] = shop["edges"][0]["via"] = shop["findings"][1]["evidence"] = "x" * 400
    shop["waterfalls"][0]["spans"][0]["name"] = shop["sources"][0] = "x" * 400
    measure = "<script>document.title = document.documentElement.scrollWidth - innerWidth</script></body>"
    without_policy = re.sub(r"<meta http-equiv[^>]+>", "", page(shop)).replace("</body>", measure)
    (folder / "page.html").write_text(without_policy)
    assert "<title>0</title>" in browser.dom(folder / "page.html", folder, width=width)
