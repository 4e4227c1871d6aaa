"""The audit as one HTML page: no script, no network, light and dark, and every picture said in words, too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

from tracefill.audit.document import (
    MEANING,
    Document,
    Finding,
    clock_time,
    counted,
    doubtful_entries,
    headline,
    percent,
    remarks,
    route,
    worst_edges_first,
    worst_first,
)
from tracefill.audit.markup import Markup, element, join
from tracefill.audit.service_map import service_map, services_left_out

SOURCES_NAMED, EDGES_SHOWN = 5, 200
CHART_WIDTH, CHART_HEIGHT = 1000, 150
CHART_LEFT, CHART_BOTTOM = 52, 22

MAP_KEY = (
    "Callers stand left of those they call. Red and dashed: chains break here; the number is the share that is kept. "
    "A red service tears chains inside itself. The table of edges says the same in words."
)

Section = tuple[str, str, Markup]  # id, title, content


def page(document: Document) -> str:
    """The whole page; parts that the document has nothing for are left out."""
    sections = [section for section in _sections(document) if section[2]]
    template = Template((files("tracefill.audit") / "report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=join([f"{headline(document)} - tracefill audit"]),
        subject=join([f"tracefill audit of {_sources(document['sources'])}"]),
        headline=_headline(document),
        remarks=_list(remarks(document), class_="remarks"),
        contents=_list(element("a", title, href=f"#{id_}") for id_, title, _ in sections),
        sections=join(_section(*section) for section in sections),
        footer=element("p", f"Made by tracefill audit; times are UTC; the data behind it: {document['schema']}."),
    )


def _sections(document: Document) -> list[Section]:
    return [
        ("time", "Completeness over time", _over_time(document)),
        ("findings", "What breaks, worst first", _findings(document)),
        ("map", "Map of services", _map(document)),
        ("parts", "Completeness by part", _parts(document)),
        ("waterfalls", "The worst chains", _waterfalls(document)),
        ("edges", "All edges", _edges(document)),
    ]


def _section(id_: str, title: str, content: Markup) -> Markup:
    return element("section", element("h2", title, id=f"{id_}-title"), content, id=id_, aria_labelledby=f"{id_}-title")


def _sources(names: list[str]) -> str:
    more = len(names) - SOURCES_NAMED
    return ", ".join(names[:SOURCES_NAMED]) + (f" and {more} more" if more > 0 else "")


def _headline(document: Document) -> Markup:
    chains = document["chains"]
    state = "whole" if chains["whole"] == chains["total"] else "broken"
    share = element("span", percent(chains["whole"], chains["total"]), class_=state)
    return join([f"{chains['whole']} of {chains['total']} chains whole: ", share])


# --- the parts ---


def _over_time(document: Document) -> Markup:
    buckets = [bucket for bucket in document.get("over_time", ()) if bucket["total"]]
    if not buckets:
        return Markup()
    rows = [(clock_time(b["start_unix_nano"]), *_kept_cells(b["whole"], b["total"])) for b in buckets]
    numbers = element("details", element("summary", "The same in numbers"), _table(("from", "whole", "share"), rows))
    return element(
        "div",
        element("div", _chart(buckets), class_="scroll", **_scrolls("The chart, scrollable")),
        numbers,
        class_="card",
    )


def _chart(buckets: Sequence[dict[str, Any]]) -> Markup:
    """What was lost hangs down from 100 %: a loss of one per cent can be seen, and is still true to scale."""
    worst = max(buckets, key=_lost)
    depth = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if _lost(worst) <= step)
    starts = [int(bucket["start_unix_nano"]) for bucket in buckets]
    length = min((later - earlier for earlier, later in pairwise(starts)), default=10**9)
    scale = (CHART_WIDTH - CHART_LEFT) / (starts[-1] - starts[0] + length)
    said = f"Completeness in {len(buckets)} steps of time; the lowest is {percent(worst['whole'], worst['total'])}."
    return element(
        "svg",
        element("title", said, id="time-said"),
        *(
            _bar(bucket, CHART_LEFT + (start - starts[0]) * scale, length * scale, _lost(bucket) / depth)
            for bucket, start in zip(buckets, starts, strict=True)
        ),
        *_axes(f"{100 * (1 - depth):.0f} %", clock_time(starts[0]), clock_time(starts[-1] + length)),
        viewBox=f"0 0 {CHART_WIDTH} {CHART_HEIGHT + CHART_BOTTOM}",
        role="img",
        aria_labelledby="time-said",
        class_="chart",
    )


def _lost(bucket: dict[str, Any]) -> float:
    return 1 - float(bucket["whole"] / bucket["total"])


def _axes(lowest: str, first: str, last: str) -> tuple[Markup, ...]:
    below = CHART_HEIGHT + CHART_BOTTOM - 4
    return (
        element("text", "100 %", x=CHART_LEFT - 8, y=12, text_anchor="end"),
        element("text", lowest, x=CHART_LEFT - 8, y=CHART_HEIGHT, text_anchor="end"),
        element("text", first, x=CHART_LEFT, y=below),
        element("text", last, x=CHART_WIDTH, y=below, text_anchor="end"),
    )


def _bar(bucket: dict[str, Any], x: float, width: float, lost: float) -> Markup:
    said = f"{clock_time(bucket['start_unix_nano'])}: {bucket['whole']} of {bucket['total']} chains whole"
    sides = {"x": x, "y": 0, "width": max(width - 1.5, 1.0)}
    return element(
        "g",
        element("title", f"{said} ({percent(bucket['whole'], bucket['total'])})"),
        element("rect", **sides, height=CHART_HEIGHT, class_="room"),
        element("rect", **sides, height=lost * CHART_HEIGHT, class_="lost"),
    )


def _findings(document: Document) -> Markup:
    findings = worst_first(document["findings"])
    if not findings:
        return element("p", "Nothing: every chain is whole.") if document["chains"]["total"] else Markup()
    rows = [_finding(finding) for finding in findings]
    hints = [element("p", hint) for hint in doubtful_entries(document)]
    heads = ("count", "cause", "where", "what was seen", "cure")
    return join([element("div", _table(heads, rows, class_="findings"), class_="card"), *hints])


def _finding(finding: Finding) -> tuple[str, ...]:
    state = "broken" if finding["breaks"] else "quiet"
    return (
        str(finding["count"]),
        join([element("strong", finding["cause"], class_=state), element("p", MEANING.get(finding["cause"], ""))]),
        join(
            [
                element("p", route(finding)),
                element("p", finding["layer"], class_="quiet"),
                element("p", finding["library"], class_="quiet"),
            ]
        ),
        join([element("p", finding["evidence"]), _also_possible(finding), _examples(finding)]),
        join([element("p", finding["cure"]["text"]), _config(finding)]),
    )


def _also_possible(finding: Finding) -> Markup:
    also = finding["also_possible"]
    return element("p", f"It may as well be {' or '.join(also)}.", class_="quiet") if also else Markup()


def _config(finding: Finding) -> Markup:
    config = finding["cure"].get("config")
    return element("pre", element("code", _lines(config))) if config else Markup()


def _examples(finding: Finding) -> Markup:
    examples = finding["examples"]
    if not examples:
        return Markup()
    return element("details", element("summary", counted(len(examples), "example")), _list(map(_example, examples)))


def _example(example: dict[str, Any]) -> Markup:
    said = f"span {example['span_id']} of trace {example['trace_id']}"
    near = example.get("near")
    return element(
        "span", said + (f", near span {near['span_id']} of trace {near['trace_id']}" if near else ""), class_="id"
    )


def _map(document: Document) -> Markup:
    drawing = service_map(document)
    if drawing is None:
        return Markup()
    left_out = services_left_out(document)
    return element(
        "figure",
        element("div", drawing, class_="scroll", **_scrolls("The map, scrollable")),
        element("figcaption", MAP_KEY + (f" {counted(left_out, 'more service')} not shown." if left_out else "")),
        class_="card",
    )


def _parts(document: Document) -> Markup:
    cards = [
        element("div", _table((title, "kept", "share"), rows), class_="card")
        for title in ("layer", "library", "destination")
        if (rows := [(row[title], *_kept_cells(row["kept"], row["total"])) for row in document.get(f"by_{title}", ())])
    ]
    return element("div", *cards, class_="cards") if cards else Markup()


def _waterfalls(document: Document) -> Markup:
    """The worst chain is open, the others open when they are asked for."""
    return join(
        element(
            "details",
            element("summary", _waterfall_title(chain)),
            _waterfall(chain),
            class_="card",
            open=None if number else "",
        )
        for number, chain in enumerate(document.get("waterfalls", ()))
    )


def _waterfall_title(chain: dict[str, Any]) -> str:
    return f"{chain['cause']}: {route(chain)}, {clock_time(chain['start_unix_nano'])}"


def _waterfall(chain: dict[str, Any]) -> Markup:
    rows = [_waterfall_row(span, max(chain["duration_ns"], 1)) for span in chain["spans"]]
    heads = [element("th", text, scope="col") for text in ("span", "service", "begins", "takes", "when")]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="waterfall")
    left_out = chain["spans_left_out"]
    more = element("p", f"{counted(left_out, 'more span')} not shown.", class_="quiet") if left_out else ""
    return join([element("div", table, class_="scroll", **_scrolls(_waterfall_title(chain))), more])


def _waterfall_row(span: dict[str, Any], length_ns: int) -> Markup:
    left, width = 100 * span["start_ns"] / length_ns, 100 * span["duration_ns"] / length_ns
    bar = element("span", style=f"margin-left:{min(left, 99.5):.2f}%;width:{min(width, 100 - left):.2f}%")
    torn = element("strong", f" {span['broken']}", class_="broken") if span["broken"] else ""
    return element(
        "tr",
        element("th", span["name"], torn, scope="row", style=f"padding-left:{min(span['depth'], 20) * 0.9:.1f}rem"),
        element("td", span["service"]),
        element("td", _milliseconds(span["start_ns"]), class_="number"),
        element("td", _milliseconds(span["duration_ns"]), class_="number"),
        element("td", bar, class_="lane"),
        class_="torn" if span["broken"] else None,
    )


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"


def _edges(document: Document) -> Markup:
    edges = worst_edges_first(document["edges"])
    rows = [
        (*_kept_cells(edge["kept"], edge["total"]), route(edge), edge["layer"], edge["library"])
        for edge in edges[:EDGES_SHOWN]
    ]
    if not rows:
        return Markup()
    more = len(edges) - len(rows)
    table = element(
        "div",
        _table(("kept", "share", "edge", "layer", "library"), rows, class_="edges"),
        class_="scroll",
        **_scrolls("The edges, scrollable"),
    )
    return element(
        "div", table, element("p", f"{counted(more, 'more edge')} not shown.") if more else "", class_="card"
    )


# --- tables and lists ---


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None) -> Markup:
    """A table; roles are said out loud, as a narrow window lays the findings out as blocks."""
    head = [element("th", text, scope="col", role="columnheader", class_=_column(text)) for text in heads]
    body = [
        element(
            "tr",
            *(element("td", cell, role="cell", class_=_column(text)) for text, cell in zip(heads, row, strict=True)),
            role="row",
        )
        for row in rows
    ]
    return element(
        "table",
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        role="table",
        class_=class_,
    )


def _column(head: str) -> str | None:
    return "number" if head in ("count", "kept", "whole", "share") else None


def _kept_cells(kept: int, total: int) -> tuple[str, Markup]:
    filled = element("span", style=f"width:{100 * kept / max(total, 1):.1f}%")
    return f"{kept} of {total}", join(
        [percent(kept, total), element("span", filled, class_="share", aria_hidden="true")]
    )


def _lines(text: str) -> Markup:
    return Markup("\n".join(join([line]) for line in text.splitlines()))


def _list(items: Iterable[str], class_: str | None = None) -> Markup:
    return element("ul", *(element("li", item) for item in items), class_=class_)


def _scrolls(label: str) -> dict[str, Any]:
    """A box that the keyboard can scroll."""
    return {"tabindex": 0, "role": "region", "aria_label": label}
