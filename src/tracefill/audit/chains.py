"""Spans -> chains -> how complete they are, which edges break them, and why: the `tracefill.audit/1` document.

Pure: the same spans give the same document, in whatever order they come. Beyond the contract the document holds
`by_layer`, `by_library` and `by_destination` (`kept` and `total` of the edges, under the name of the part), `over_time`
(`start_unix_nano`, `whole` and `total` of the chains that began in each of up to sixty steps) and `doubtful_entries`
(`service`, `operation`, `count`, and `outside`: what to pass as `outside` if it is strangers who call the operation).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

from tracefill.audit.causes import BREAKS, Instances
from tracefill.audit.causes.far_sides import far_sides
from tracefill.audit.causes.handoffs import handoffs
from tracefill.audit.causes.missing_parents import MissingParents, find_missing, missing_parents
from tracefill.audit.causes.shapes import (
    cycle,
    duplicate_id,
    first_roots,
    id_truncated,
    several_roots,
)
from tracefill.audit.causes.timing import clock_skew, exported_twice, glued, late_children, premature_end
from tracefill.audit.clocks import Clocks
from tracefill.audit.cures import cure
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, group
from tracefill.audit.routes import JOBS, LAYERS, MESSAGES, Atlas, Routes
from tracefill.audit.spans import Spans
from tracefill.audit.window import Window

SCHEMA = "tracefill.audit/1"
EXAMPLES = 3
TIME_STEPS = 60

# Layers that the cause tells, whatever the far span is.
_LAYER_OF_CAUSE = {"scope_too_short": MESSAGES, "glued": JOBS}

Document = dict[str, Any]


def audit(
    spans: Spans, *, edge_seconds: float | None = None, outside: Iterable[str] = (), examples: int | None = EXAMPLES
) -> Document:
    """The document about these spans; with no spans at all its numbers are 0 and its share is 1.

    Takes the table over: its rows are put in order. `outside` names operations that strangers call, so that their
    callers are not taken for lost ones: a span name, or a service, a colon and a span name, `*` for anything.
    `examples` spans a finding, all for None.

    >>> from tracefill.audit.spans import SERVER, SpansBuilder
    >>> builder = SpansBuilder()
    >>> builder.append(trace_id_low=0xA3, span_id=0xB7, start=10, end=20, kind=SERVER, name=builder.intern("GET /"))
    >>> audit(builder.build())["chains"]
    {'whole': 1, 'total': 1, 'share': 1.0, 'torn_off': 0, 'begun_outside': 0}
    """
    window = Window.of(spans, edge_seconds)
    forest = Forest(spans)
    entries, clocks = Entries(forest, tuple(outside)), Clocks(forest)
    missing = missing_parents(forest, clocks, entries.explained)
    put_down_to_window = ~window.holds(missing.first_start)
    atlas = Atlas(forest)
    found = list(_find(forest, atlas, clocks, window, entries, missing.only(~put_down_to_window)))
    chains = Chains(forest, found, missing.child[put_down_to_window], entries.outside)
    report = Report(forest, atlas, found, examples)
    return {
        "schema": SCHEMA,
        "input": _input(spans),
        "window": _window(window, chains),
        "chains": chains.numbers(),
        "findings": report.findings(),
        "edges": report.edges,
        "by_layer": report.by("layer"),
        "by_library": report.by("library"),
        "by_destination": report.by("destination"),
        "over_time": chains.over_time(window),
        "doubtful_entries": report.doubtful_entries(),
    }


class Entries:
    """Where chains begin."""

    def __init__(self, forest: Forest, outside: tuple[str, ...]) -> None:
        self.forest = forest
        self.is_named_outside = self._named(outside)
        truncated, _ = forest.truncated_edges
        lacking = np.setdiff1d(np.flatnonzero(forest.lacks_parent & forest.is_far_kind), truncated)
        operation = forest.operation[lacking]
        strangers = ~forest.is_called[operation] | self.is_named_outside[operation] if len(lacking) else lacking
        self.outside = lacking[strangers.astype(bool)]
        self.explained = np.concatenate([self.outside, truncated])
        self.roots = np.sort(np.concatenate([np.flatnonzero(forest["parent_id"] == 0), self.outside]))

    def _named(self, outside: tuple[str, ...]) -> Array:
        """For each operation, whether the caller of the audit says that strangers call it."""
        forest = self.forest
        named = np.zeros(forest.operation.max(initial=-1) + 1, bool)
        patterns = [re.compile(re.escape(text).replace(r"\*", ".*"), re.DOTALL) for text in outside]
        rows = np.flatnonzero(forest.is_far_kind) if outside else np.empty(0, np.int64)
        operations, first = np.unique(forest.operation[rows], return_index=True)
        for operation, row in zip(operations.tolist(), rows[first].tolist(), strict=True):
            name = forest.spans.text("name", row)
            names = (name, f"{forest.spans.text('service', row)}:{name}")
            named[operation] = any(pattern.fullmatch(text) for text in names for pattern in patterns)
        return named

    def may_be_torn_off(self, clocks: Clocks) -> Array:
        """Rows without a parent that begin their trace, and are not called by strangers."""
        forest = self.forest
        first = first_roots(forest, clocks, self.roots)
        first = first[forest["parent_id"][first] == 0]
        operation = forest.operation[first]
        called_by_strangers = operation >= 0
        called_by_strangers[called_by_strangers] = self.is_named_outside[operation[called_by_strangers]]
        return np.asarray(first[~called_by_strangers])


def _find(
    forest: Forest, atlas: Atlas, clocks: Clocks, window: Window, entries: Entries, missing: MissingParents
) -> Iterator[Instances]:
    """All causes, in the order of the contract."""
    roots = entries.may_be_torn_off(clocks)
    yield from far_sides(forest, atlas.targets, clocks, window, roots)
    yield from id_truncated(forest)
    yield from handoffs(forest, roots)
    yield from find_missing(forest, atlas, clocks, missing, window)
    yield from duplicate_id(forest, clocks)
    yield from several_roots(forest, atlas, clocks, entries.roots, entries.outside)
    yield from cycle(forest)
    late = late_children(forest)
    runs = list(glued(forest, late))
    yield from runs
    yield from premature_end(forest, np.setdiff1d(late, runs[0].far if runs else []), clocks)
    yield from clock_skew(forest)
    yield from exported_twice(forest)


# --- chains ---


class Chains:
    """Traces, together with those that were torn off from them."""

    def __init__(self, forest: Forest, found: list[Instances], in_window: Array, outside: Array) -> None:
        self.forest = forest
        breaks = [one for one in found if one.breaks]
        trace = forest.trace
        torn = [(trace[one.far[one.near >= 0]], trace[one.near[one.near >= 0]]) for one in breaks]
        self.of_trace, self.count = _joined(forest.trace_count, torn)
        broken = self._with([one.far for one in breaks])
        self.left_out = self._with([in_window]) & ~broken
        self.judged = ~self.left_out
        self.whole = self.judged & ~broken
        self.begun_outside = self._with([outside]) & self.judged

    def _with(self, rows: list[Array]) -> Array:
        """Whether each chain has one of the rows."""
        has = np.zeros(self.count, bool)
        for some in rows:
            has[self.of_trace[self.forest.trace[some]]] = True
        return has

    def numbers(self) -> dict[str, Any]:
        whole, total = int(self.whole.sum()), int(self.judged.sum())
        return {
            "whole": whole,
            "total": total,
            "share": whole / total if total else 1.0,
            "torn_off": self.forest.trace_count - self.count,
            "begun_outside": int(self.begun_outside.sum()),
        }

    def over_time(self, window: Window) -> list[dict[str, Any]]:
        """Whole and all chains by the time they began, in up to sixty steps of whole seconds or parts of one."""
        if not self.count:
            return []
        starts = np.minimum.reduceat(self.forest["start"], self.forest.trace_starts[:-1])
        begun = np.full(self.count, np.iinfo(np.int64).max)
        np.minimum.at(begun, self.of_trace, starts)
        length = max(-(-(window.end - window.start + 1) // TIME_STEPS), 1)
        step = (begun - window.start) // length
        whole, total = np.bincount(step[self.whole]), np.bincount(step[self.judged])
        whole = np.pad(whole, (0, len(total) - len(whole)))
        return [
            {"start_unix_nano": str(window.start + number * length), "whole": int(whole[number]), "total": int(count)}
            for number, count in enumerate(total.tolist())
        ]


def _joined(count: int, pairs: list[tuple[Array, Array]]) -> tuple[Array, int]:
    """The number of the chain of each trace, when the traces of each pair are one chain; and how many there are."""
    left = np.concatenate([np.empty(0, np.int64), *(pair[0] for pair in pairs)]).astype(np.int64)
    right = np.concatenate([np.empty(0, np.int64), *(pair[1] for pair in pairs)]).astype(np.int64)
    chain = np.arange(count)
    while (chain[left] != chain[right]).any():
        lower = np.minimum(chain[left], chain[right])
        np.minimum.at(chain, chain[left], lower)
        np.minimum.at(chain, chain[right], lower)
        while (chain[chain] != chain).any():
            chain = chain[chain]
    numbers, chain = np.unique(chain, return_inverse=True)
    return chain, len(numbers)


# --- the document ---


def _input(spans: Spans) -> dict[str, Any]:
    return {
        "spans": len(spans),
        "duplicate_spans": int(spans["copies"].astype(np.int64).sum()) - len(spans),
        "skipped_spans": spans.input.skipped_spans,
        "damaged_records": spans.input.damaged_records,
        "damaged": [{"file": one.file, "record": one.record, "reason": one.reason} for one in spans.input.damaged],
    }


def _window(window: Window, chains: Chains) -> dict[str, Any]:
    return {
        "start_unix_nano": str(window.start),
        "end_unix_nano": str(window.end),
        "edge_seconds": window.edge / 1e9,
        "left_out": int(chains.left_out.sum()),
    }


class Report:
    """Findings and edges in the words of the contract."""

    def __init__(self, forest: Forest, atlas: Atlas, found: list[Instances], examples: int | None) -> None:
        self.forest, self.atlas, self.found, self.examples = forest, atlas, found, examples
        self.strings = forest.spans.strings
        self.routes = [
            atlas.routes(one.far, one.near, source=one.source, layer=_LAYER_OF_CAUSE.get(one.cause)) for one in found
        ]
        self._edges = self._count_edges()

    def _names(self, routes: Routes, at: int) -> dict[str, str]:
        source, target, layer, via, library = (int(column[at]) for column in routes)
        return {
            "layer": LAYERS[layer],
            "from": self.strings[source],
            "to": self.strings[target],
            "via": self.strings[via],
            "library": self.strings[library],
        }

    # --- edges ---

    def _count_edges(self) -> dict[tuple[str, ...], list[int]]:
        """Kept and total by route."""
        edges: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        far, near = self.forest.far_edges
        accused = np.zeros(len(self.forest), bool)
        for one in self.found:
            accused[one.far] |= one.breaks
        kept = ~accused[far]
        self._add(edges, self.atlas.routes(far[kept], near[kept]), kept=1)
        for one, routes in zip(self.found, self.routes, strict=True):
            if one.breaks:
                at = self.forest.is_far_kind[one.far]
                self._add(edges, Routes(*(column[at] for column in routes)), kept=0)
        return edges

    def _add(self, edges: dict[tuple[str, ...], list[int]], routes: Routes, kept: int) -> None:
        first, counts, _ = group(routes.keys)
        for at, count in zip(first.tolist(), counts.tolist(), strict=True):
            edge = edges[tuple(self._names(routes, at).values())]
            edge[0] += kept * count
            edge[1] += count

    @cached_property
    def edges(self) -> list[dict[str, Any]]:
        """The edges, those that lost most first."""
        ordered = sorted(self._edges.items(), key=lambda edge: (edge[1][0] - edge[1][1], -edge[1][1], edge[0]))
        return [
            {"from": source, "to": target, "layer": layer, "via": via, "library": library, "kept": kept, "total": total}
            for (layer, source, target, via, library), (kept, total) in ordered
        ]

    def by(self, part: str) -> list[dict[str, Any]]:
        """The edges summed up by layer, by library, or (those of messages) by destination."""
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for edge in self.edges:
            name = edge["via" if part == "destination" else part]
            if part != "destination" or edge["layer"] == LAYERS[MESSAGES]:
                sums[name][0] += edge["kept"]
                sums[name][1] += edge["total"]
        ordered = sorted(sums.items(), key=lambda one: (one[1][0] - one[1][1], -one[1][1], one[0]))
        return [{part: name, "kept": kept, "total": total} for name, (kept, total) in ordered]

    # --- findings ---

    def findings(self) -> list[dict[str, Any]]:
        """One for each cause and route; the order is that of the causes, then the more frequent first."""
        grouped: dict[tuple[str, ...], list[tuple[Instances, Routes, Array]]] = defaultdict(list)
        for one, routes in zip(self.found, self.routes, strict=True):
            first, _, numbers = group(routes.keys)
            order = np.argsort(numbers, kind="stable")
            parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
            for at, part in zip(first.tolist(), parts, strict=True):
                grouped[(one.cause, *self._names(routes, at).values())].append((one, routes, part))
        findings = [self._finding(key, parts) for key, parts in grouped.items()]
        order_of = {cause: number for number, cause in enumerate(BREAKS)}
        route = itemgetter("from", "to", "via", "library", "layer")
        return sorted(findings, key=lambda f: (order_of[f["cause"]], -f["count"], route(f)))

    def _finding(self, key: tuple[str, ...], parts: list[tuple[Instances, Routes, Array]]) -> dict[str, Any]:
        cause, layer, source, target, via, library = key
        count = sum(int(one.weight[part].sum()) if one.weight is not None else len(part) for one, _, part in parts)
        main = max(parts, key=lambda part: len(part[2]))[0]
        far = np.concatenate([one.far[part] for one, _, part in parts])
        near = np.concatenate([one.near[part] for one, _, part in parts])
        kept, total = self._edges.get(key[1:], [0, count])
        total = self._runs[int(self.forest.label(far[:1])[0])] if cause == "handoff_lost" else max(total, count)
        words = {"count": count, "kept": kept, "total": total, "from_": source, "to": target, "via": via}
        return {
            "cause": cause,
            "breaks": BREAKS[cause],
            "layer": layer,
            "from": source,
            "to": target,
            "via": via,
            "library": library,
            "count": count,
            "also_possible": sorted({also for one, _, _ in parts for also in one.also_possible}),
            "evidence": main.evidence.format(**words),
            "cure": cure(cause, self._library(near[0]), library),
            "examples": self._examples(far, near),
        }

    @cached_property
    def _runs(self) -> dict[int, int]:
        """How many spans there are of each name that lost a hand-off."""
        lost = np.concatenate([one.far for one in self.found if one.cause == "handoff_lost"])
        labels, counts = np.unique(self.forest.label(self.forest.named_like(lost)), return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def _library(self, row: int) -> str:
        return self.forest.spans.text("library", row) if row >= 0 else ""

    def _examples(self, far: Array, near: Array) -> list[dict[str, Any]]:
        """The earliest of the far spans, each with the near span, or the id that it had."""
        order = np.lexsort((far, self.forest["start"][far]))[: self.examples]
        return [self._example(int(far[at]), int(near[at])) for at in order]

    def _example(self, far: int, near: int) -> dict[str, Any]:
        example: dict[str, Any] = self._ids(far, self.forest["span_id"][far])
        if near >= 0:
            return example | {"near": self._ids(near, self.forest["span_id"][near])}
        parent_id = self.forest["parent_id"][far]
        return example | {"near": self._ids(far, parent_id)} if parent_id else example

    def _ids(self, row: int, span_id: Any) -> dict[str, str]:
        high, low = self.forest["trace_id_high"][row], self.forest["trace_id_low"][row]
        return {"trace_id": f"{int(high):016x}{int(low):016x}", "span_id": f"{int(span_id):016x}"}

    # --- hints ---

    def doubtful_entries(self) -> list[dict[str, Any]]:
        """Operations that lose callers of whom nothing else is seen in those traces: it may be strangers who call."""
        forest = self.forest
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for one, routes in zip(self.found, self.routes, strict=True):
            if one.cause in ("sampled_out", "not_exported"):
                at = np.flatnonzero(forest.is_far_kind[one.far] & ~self.atlas.are_in_trace(one.far, routes.source))
                for row in one.far[at].tolist():
                    counts[forest.spans.text("service", row), forest.spans.text("name", row)] += 1
        return [
            {"service": service, "operation": operation, "count": count, "outside": f"{service}:{operation}"}
            for (service, operation), count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        ]
