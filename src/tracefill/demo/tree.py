"""One trace as a tree: each span under its parent, statements and tags beside the spans that have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

KINDS = ("", "internal", "server", "client", "producer", "consumer")
STATEMENT = ("db.query.text", "db.statement")
TAGS = ("tenant_id", "order_no")


@dataclass
class Span:
    """What a tree shows of a span; `links` are trace ids."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)


def spans_with(text: str, folder: Path) -> list[Span]:
    """The spans of a run in whose traces or links this id is, the earliest first."""
    found = [span for span in _read(text, folder) if text in (span.trace_id, *span.links)]
    return sorted(found, key=lambda span: span.start_ns)


def tree(trace_id: str, spans: list[Span]) -> Tree:
    """The spans of one trace; whose parent is not among them stands at the top."""
    own = [span for span in spans if span.trace_id == trace_id]
    present = {span.span_id for span in own}
    below: dict[str, list[Span]] = {}
    for span in own:
        below.setdefault(span.parent_id if span.parent_id in present else "", []).append(span)
    top = Tree(Text(f"trace {trace_id}"))
    _grow(top, below, "")
    return top


def label(span: Span, is_last: bool) -> str:
    """A line of the tree: who, what, and for how long; the statement, the links, and at the end of a branch the tags.

    >>> span = Span("orders", "ab", "cd", "", "INSERT", "client", 0, 2_000_000, {"order_no": "7"}, ["a3ce"])
    >>> label(span, is_last=True)
    'orders: INSERT (client, 2.0 ms) -> link to trace a3ce [order_no=7]'
    """
    parts = [f"{span.service}: {span.name} ({span.kind}, {(span.end_ns - span.start_ns) / 1e6:.1f} ms)"]
    parts += [str(span.attributes[name]) for name in STATEMENT if name in span.attributes]
    parts += [f"-> link to trace {trace_id}" for trace_id in span.links]
    tags = [f"{name}={span.attributes[name]}" for name in TAGS if name in span.attributes]
    if is_last and tags:
        parts.append(f"[{', '.join(tags)}]")
    return " ".join(parts)


def _grow(tree: Tree, below: dict[str, list[Span]], parent_id: str) -> None:
    for span in below.pop(parent_id, []):
        text = label(span, is_last=span.span_id not in below)
        _grow(tree.add(Text(text)), below, span.span_id)


def _read(text: str, folder: Path) -> Iterator[Span]:
    """The spans of those lines of OTLP JSON that contain the text."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if text in line:
                    yield from spans_of(json.loads(line))


def spans_of(request: dict[str, Any]) -> Iterator[Span]:
    """The spans of one request of OTLP JSON."""
    for resource in request["resourceSpans"]:
        service = _attributes(resource["resource"]).get("service.name", "")
        for scope in resource["scopeSpans"]:
            yield from (_span(service, written) for written in scope["spans"])


def _span(service: str, written: dict[str, Any]) -> Span:
    return Span(
        service=service,
        trace_id=written["traceId"],
        span_id=written["spanId"],
        parent_id=written.get("parentSpanId") or "",
        name=written["name"],
        kind=KINDS[written["kind"]],
        start_ns=int(written["startTimeUnixNano"]),
        end_ns=int(written["endTimeUnixNano"]),
        attributes=_attributes(written),
        links=[link["traceId"] for link in written.get("links", ())],
    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    pairs = holder.get("attributes", ())
    return {pair["key"]: next(iter(pair["value"].values()), None) for pair in pairs}
