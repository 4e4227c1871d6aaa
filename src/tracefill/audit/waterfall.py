"""The worst chains, span by span: what the page draws as waterfalls."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from tracefill.audit.document import Document, Finding, worst_first
from tracefill.audit.spans import Spans

CHAINS = 8
ROWS = 60

Key = tuple[str, str]  # trace id, span id


def waterfalls(spans: Spans, document: Document) -> list[dict[str, Any]]:
    """One chain for each of the worst findings: the first example, together with the trace it should hang on.

    Each is ``cause, from, to, via, start_unix_nano, duration_ns, spans_left_out, spans``; a span is ``service, name,
    trace_id, span_id, depth, start_ns, duration_ns, broken`` (a cause, or None), parents before their children.
    """
    findings = [finding for finding in worst_first(document["findings"]) if finding["breaks"] and finding["examples"]]
    broken, near = _examples(document["findings"])
    drawn: list[dict[str, Any]] = []
    seen: set[str] = set()
    for finding in findings:
        traces = _traces(finding, near)
        if len(drawn) < CHAINS and not seen & traces:
            seen |= traces
            drawn.append(_waterfall(finding, _rows_of(spans, traces), broken, near))
    return [chain for chain in drawn if chain["spans"]]


def _examples(findings: list[Finding]) -> tuple[dict[Key, str], dict[Key, Key]]:
    """The cause of each example, and the span that it should hang on."""
    broken: dict[Key, str] = {}
    near: dict[Key, Key] = {}
    for finding in findings:
        for example in finding["examples"] if finding["breaks"] else ():
            key = _key(example)
            broken.setdefault(key, finding["cause"])
            if example.get("near"):
                near.setdefault(key, _key(example["near"]))
    return broken, near


def _key(example: dict[str, Any]) -> Key:
    return example["trace_id"], example["span_id"]


def _traces(finding: Finding, near: dict[Key, Key]) -> set[str]:
    """The trace of the first example and those that it was torn off from, up to where the chain began."""
    traces = {finding["examples"][0]["trace_id"]}
    while above := {to[0] for far, to in near.items() if far[0] in traces} - traces:
        traces |= above
    return traces


def _rows_of(spans: Spans, traces: set[str]) -> list[dict[str, Any]]:
    """The spans of these traces by their start, each once however often it was exported."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in np.flatnonzero(_within(spans, traces)).tolist():
        span = _span(spans, row)
        found.setdefault(tuple(span.values()), span)
    return sorted(found.values(), key=lambda span: span["start_ns"])


def _within(spans: Spans, traces: set[str]) -> npt.NDArray[np.bool_]:
    within = np.zeros(len(spans), dtype=bool)
    for trace_id in traces:
        high, low = int(trace_id[:16], 16), int(trace_id[16:], 16)
        within |= (spans["trace_id_low"] == np.uint64(low)) & (spans["trace_id_high"] == np.uint64(high))
    return within


def _span(spans: Spans, row: int) -> dict[str, Any]:
    trace_id = f"{int(spans['trace_id_high'][row]):016x}{int(spans['trace_id_low'][row]):016x}"
    parent_id = int(spans["parent_id"][row])
    start, end = int(spans["start"][row]), int(spans["end"][row])
    return {
        "service": spans.text("service", row),
        "name": spans.text("name", row),
        "trace_id": trace_id,
        "span_id": f"{int(spans['span_id'][row]):016x}",
        "parent": (trace_id, f"{parent_id:016x}") if parent_id else None,
        "start_ns": start,
        "duration_ns": max(end - start, 0),
    }


def _waterfall(
    finding: Finding, rows: list[dict[str, Any]], broken: dict[Key, str], near: dict[Key, Key]
) -> dict[str, Any]:
    start = min((row["start_ns"] for row in rows), default=0)
    end = max((row["start_ns"] + row["duration_ns"] for row in rows), default=0)
    tree = _as_tree(rows, near)
    for row in tree:
        row.update(start_ns=row["start_ns"] - start, broken=broken.get(_key(row)))
    shown = _worth_showing(tree)
    return {name: finding[name] for name in ("cause", "from", "to", "via")} | {
        "start_unix_nano": str(start),
        "duration_ns": end - start,
        "spans_left_out": len(tree) - len(shown),
        "spans": shown,
    }


def _as_tree(rows: list[dict[str, Any]], near: dict[Key, Key]) -> list[dict[str, Any]]:
    """The rows with their depth, parents before children; one without a parent hangs where it should."""
    keys = {_key(row) for row in rows}
    children = defaultdict[Key | None, list[dict[str, Any]]](list)
    for row in rows:
        above = (row.pop("parent"), near.get(_key(row)))
        children[next((key for key in above if key in keys), None)].append(row)
    tree: list[dict[str, Any]] = []
    _walk(children.pop(None, []), children, tree)
    while children:  # what is left are cycles, which nothing leads to
        _walk([next(iter(children.values())).pop(0)], children, tree)
        children = defaultdict(list, {key: below for key, below in children.items() if below})
    return tree


def _walk(
    tops: list[dict[str, Any]], children: dict[Key | None, list[dict[str, Any]]], tree: list[dict[str, Any]]
) -> None:
    waiting = [(row, 0) for row in reversed(tops)]
    while waiting:
        row, depth = waiting.pop()
        tree.append(row | {"depth": depth})
        waiting += [(below, depth + 1) for below in reversed(children.pop(_key(row), []))]


def _worth_showing(tree: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Not more than ROWS: what is broken and what is above it, then the rest from the top."""
    wanted: dict[int, None] = {}
    for place, row in enumerate(tree):
        if row["broken"]:
            wanted.update(dict.fromkeys(_and_above(tree, place)))
    wanted.update(dict.fromkeys(range(len(tree))))
    return [tree[place] for place in sorted(list(wanted)[:ROWS])]


def _and_above(tree: list[dict[str, Any]], place: int) -> list[int]:
    path = [place]
    while tree[path[0]]["depth"]:
        depth = tree[path[0]]["depth"]
        path.insert(0, next(above for above in range(path[0] - 1, -1, -1) if tree[above]["depth"] < depth))
    return path
