"""What hangs on what: the spans in order of their traces, each with the row of its parent."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from tracefill.audit.numbering import Array, combine, dense, is_in, look_up, mix
from tracefill.audit.spans import CLIENT, CONSUMER, PRODUCER, SERVER, Spans

# Two spans that agree in these are one span, exported twice.
_IDENTITY = (
    "trace_id_high",
    "trace_id_low",
    "span_id",
    "parent_id",
    "name",
    "kind",
    "service",
    "process",
    "start",
    "end",
)
_LATER_COMES_LATER = ("start", "end", "parent_id", "name", "kind", "service", "process")
# Twins that differ in these are one span all the same; which of them stays must not depend on the order they came in.
_TWINS_DIFFER = ("library", "destination", "peer", "thread", "database", "subject")
_LINK = ("link_row", "link_trace_id_high", "link_trace_id_low", "link_span_id")
_TEXTS = ("name", "service", "process", "library", "destination", "peer")


class Forest:
    """Spans and their parents. Rows are in order of trace and span id, whatever the order they came in.

    Takes the table over: its rows are put in order and a span that was exported twice becomes one row.
    """

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        self._put_in_order()
        self._fold_copies()
        self.trace, self.trace_keys = _number_traces(spans, self._salt)
        self.key = self._span_keys(self.trace, spans["span_id"])
        self.trace_starts = np.searchsorted(self.trace, np.arange(len(self.trace_keys) + 1, dtype=self.trace.dtype))
        self.parent = self._find_parents()

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, column: str) -> Array:
        return self.spans[column]

    @property
    def trace_count(self) -> int:
        return len(self.trace_keys)

    # --- order ---

    def _put_in_order(self) -> None:
        for self._salt in range(8):
            trace, trace_keys = _number_traces(self.spans, self._salt)
            self._span_bits = np.uint64(64 - len(trace_keys).bit_length())
            key = self._span_keys(trace, self.spans["span_id"])
            order = np.argsort(key)
            if _tells_apart(key[order], trace[order], self.spans, order):
                del trace, trace_keys
                return self._reorder(_by_content(self.spans, key[order], order))
        raise AssertionError("eight hash functions in a row with collisions")

    def _reorder(self, order: Array) -> None:
        columns = self.spans.columns
        new_row = np.empty(len(order), np.int32)
        new_row[order] = np.arange(len(order), dtype=np.int32)
        for name in columns:
            if not name.startswith("link_"):
                columns[name] = columns[name][order]
        columns["link_row"] = new_row[columns["link_row"]]

    def _fold_copies(self) -> None:
        spans = self.spans
        copy = np.zeros(len(spans), bool)
        copy[1:] = np.logical_and.reduce([spans[name][1:] == spans[name][:-1] for name in _IDENTITY])
        if not copy.any():
            return
        keep = np.flatnonzero(~copy)
        copies = np.add.reduceat(spans["copies"].astype(np.int64), keep)
        new_row = np.cumsum(~copy, dtype=np.int32) - np.int32(1)
        kept_links = ~copy[spans["link_row"]]
        for name, column in list(spans.columns.items()):
            spans.columns[name] = column[kept_links] if name.startswith("link_") else column[keep]
        spans.columns["copies"] = np.minimum(copies, np.iinfo(np.uint16).max).astype(np.uint16)
        spans.columns["link_row"] = new_row[spans["link_row"]]

    # --- look-ups ---

    def _span_keys(self, trace: Array, span_id: Array) -> Array:
        """Ordered by trace, so that neighbours in the data are neighbours in memory when parents are looked up."""
        return (trace.astype(np.uint64) << self._span_bits) | (
            mix(span_id, self._salt) >> (np.uint64(64) - self._span_bits)
        )

    def find(self, trace: Array, span_id: Array) -> Array:
        """Rows of the spans with these ids in these traces (numbers); -1 where there is none."""
        row = look_up(self.key, self._span_keys(np.maximum(trace, 0), span_id))
        found = (row >= 0) & (trace >= 0)
        found[found] = self["span_id"][row[found]] == span_id[found]
        return np.where(found, row, -1)

    def find_traces(self, high: Array, low: Array) -> Array:
        """Numbers of the traces with these ids; -1 where there is none."""
        return look_up(self.trace_keys, _trace_keys(high, low, self._salt))

    def _find_parents(self) -> Array:
        parent_id = self["parent_id"]
        row = look_up(self.key, self._span_keys(self.trace, parent_id))
        found = (row >= 0) & (parent_id != 0) & (self["span_id"][row] == parent_id if len(self) else True)
        return np.where(found, row, -1).astype(np.int32)

    # --- who is who ---

    @cached_property
    def is_far_kind(self) -> Array:
        """SERVER or CONSUMER: the far side of a call or a message."""
        return np.asarray((self["kind"] == SERVER) | (self["kind"] == CONSUMER))

    @cached_property
    def is_near_kind(self) -> Array:
        return np.asarray((self["kind"] == CLIENT) | (self["kind"] == PRODUCER))

    @cached_property
    def lives(self) -> tuple[Array, Array]:
        """For each process when its first span started and its last one ended."""
        size = len(self.spans.strings)
        first, last = np.full(size, np.iinfo(np.int64).max), np.full(size, np.iinfo(np.int64).min)
        np.minimum.at(first, self["process"], self["start"])
        np.maximum.at(last, self["process"], self["end"])
        return first, last

    @cached_property
    def has_child(self) -> Array:
        has_child = np.zeros(len(self), bool)
        has_child[self.parent[self.parent >= 0]] = True
        return has_child

    @cached_property
    def links(self) -> tuple[Array, Array]:
        """Rows of spans with a link to a span in the data, and the rows linked to."""
        spans = self.spans
        trace = self.find_traces(spans["link_trace_id_high"], spans["link_trace_id_low"])
        target = self.find(trace, spans["link_span_id"])
        return spans["link_row"][target >= 0], target[target >= 0]

    @cached_property
    def is_linked(self) -> Array:
        linked = np.zeros(len(self), bool)
        linked[self.links[0]] = True
        return linked

    @cached_property
    def lacks_parent(self) -> Array:
        """Has a parent id that is not in its trace."""
        return np.asarray((self["parent_id"] != 0) & (self.parent < 0))

    @cached_property
    def far_edges(self) -> tuple[Array, Array]:
        """(far, near) rows of every edge into a SERVER or CONSUMER: its parent or, without one, each of its links."""
        by_parent = np.flatnonzero(self.is_far_kind & (self.parent >= 0))
        far, near = self.links
        by_link = self.is_far_kind[far] & (self["parent_id"][far] == 0)
        return (
            np.concatenate([by_parent, far[by_link]]),
            np.concatenate([self.parent[by_parent], near[by_link]]),
        )

    @cached_property
    def crossings(self) -> tuple[Array, Array]:
        """(far, near) rows of the far edges that lead over a boundary, not to a span on the same side of it."""
        far, near = self.far_edges
        crosses = self.is_near_kind[near] | (self["process"][far] != self["process"][near])
        return far[crosses], near[crosses]

    @cached_property
    def senders(self) -> Array:
        """Rows of CLIENT and PRODUCER spans that call somebody: no databases, and the innermost of nested ones."""
        inner = np.flatnonzero(self.is_near_kind & (self.parent >= 0))
        outer = self.parent[inner]
        sends = self.is_near_kind & ~self["database"]
        sends[outer[self.is_near_kind[outer] & (self["process"][inner] == self["process"][outer])]] = False
        return np.flatnonzero(sends)

    @cached_property
    def truncated_edges(self) -> tuple[Array, Array]:
        """(far, near) rows over every place where a trace id lost its upper half."""
        first = self.trace_starts[:-1]
        high, low = self["trace_id_high"][first], self["trace_id_low"][first]
        short, long = np.flatnonzero(high == 0), np.flatnonzero(high != 0)
        if not len(short) or not len(long):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        order = np.argsort(low[long], kind="stable")
        found = look_up(low[long][order], low[short])
        full = np.full(self.trace_count, -1)
        full[short] = np.where(found >= 0, long[order][found], -1)
        far = np.flatnonzero(self.lacks_parent & (full[self.trace] >= 0))
        near = self.find(full[self.trace[far]], self["parent_id"][far])
        return far[near >= 0], near[near >= 0]

    @cached_property
    def reached(self) -> tuple[Array, Array]:
        """(row, service) wherever a span is continued elsewhere: by a child, by a link, under half of the trace id."""
        child = np.flatnonzero(self.parent >= 0)
        parent = self.parent[child]
        elsewhere = self.is_far_kind[child] | (self["process"][child] != self["process"][parent])
        linking, linked = self.links
        truncated, cut_from = self.truncated_edges
        return (
            np.concatenate([parent[elsewhere], linked, cut_from]),
            self["service"][np.concatenate([child[elsewhere], linking, truncated])],
        )

    @cached_property
    def operation(self) -> Array:
        """A number of service and name for each SERVER or CONSUMER row; -1 for the others."""
        rows = np.flatnonzero(self.is_far_kind)
        services, service_values = dense(self["service"][rows], len(self.spans.strings))
        names, name_values = dense(self["name"][rows], len(self.spans.strings))
        size = len(service_values) * len(name_values)
        operation = np.full(len(self), -1, np.int32)
        operation[rows] = dense(services.astype(np.int64) * max(len(name_values), 1) + names, max(size, 1))[0]
        return operation

    @cached_property
    def is_called(self) -> Array:
        """For each operation, whether anybody in the data is seen calling it."""
        called = np.zeros(self.operation.max(initial=-1) + 1, bool)
        called[self.operation[self.crossings[0]]] = True
        return called

    def named_like(self, rows: Array) -> Array:
        """All rows whose service and name are those of one of the given rows."""
        wanted = np.zeros(len(self.spans.strings), bool)
        wanted[self["name"][rows]] = True
        candidates = np.flatnonzero(wanted[self["name"]])
        return candidates[is_in(self.label(candidates), self.label(rows))]

    def label(self, rows: Array) -> Array:
        """One number for service and name."""
        return combine(self["service"][rows], self["name"][rows])


def _trace_keys(high: Array, low: Array, salt: int) -> Array:
    return mix(mix(high, salt) ^ low, salt)


def _number_traces(spans: Spans, salt: int) -> tuple[Array, Array]:
    """The number of each row's trace, and the sorted keys that the numbers stand for."""
    keys = _trace_keys(spans["trace_id_high"], spans["trace_id_low"], salt)
    order = None if _is_sorted(keys) else np.argsort(keys)
    ordered = keys if order is None else keys[order]
    begins = np.ones(len(keys), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    numbers = np.cumsum(begins, dtype=np.int32) - np.int32(1)
    if order is None:
        return numbers, ordered[begins]
    trace = np.empty_like(numbers)
    trace[order] = numbers
    return trace, ordered[begins]


def _is_sorted(keys: Array) -> bool:
    return bool((keys[1:] >= keys[:-1]).all())


def _tells_apart(ordered_keys: Array, ordered_trace: Array, spans: Spans, order: Array) -> bool:
    """Whether no two different ids got one key."""
    same_key = np.flatnonzero(ordered_keys[1:] == ordered_keys[:-1])
    if (spans["span_id"][order[same_key]] != spans["span_id"][order[same_key + 1]]).any():
        return False
    same_trace = ordered_trace[1:] == ordered_trace[:-1]
    return all(
        bool((column[1:] == column[:-1])[same_trace].all())
        for column in (spans[name][order] for name in ("trace_id_high", "trace_id_low"))
    )


def _by_content(spans: Spans, ordered_keys: Array, order: Array) -> Array:
    """The order, with spans of one id ordered by what they say, so that it does not matter how they came."""
    repeated = np.zeros(len(order), bool)
    repeated[1:] = ordered_keys[1:] == ordered_keys[:-1]
    repeated[:-1] |= repeated[1:]
    positions = np.flatnonzero(repeated)
    rows = order[positions]
    columns = [
        _text_ranks(spans, name, rows) if name in _TEXTS else spans[name][rows]
        for name in (*_LATER_COMES_LATER, *_TWINS_DIFFER)
    ]
    columns.append(_link_ranks(spans, rows))
    order[positions] = rows[np.lexsort((*columns[::-1], ordered_keys[positions]))]
    return order


def _link_ranks(spans: Spans, rows: Array) -> Array:
    """The order of these rows by what they link to."""
    linked: dict[int, list[tuple[int, ...]]] = {int(row): [] for row in rows[is_in(rows, spans["link_row"])]}
    told = np.flatnonzero(is_in(spans["link_row"], rows))
    parts = (spans[name][told].tolist() for name in _LINK)
    for row, *link in zip(*parts, strict=True):
        linked[row].append(tuple(link))
    ranks = {row: rank for rank, row in enumerate(sorted(linked, key=linked.__getitem__), 1)}
    return np.array([ranks.get(row, 0) for row in rows.tolist()]) if ranks else np.zeros(len(rows), np.int64)


def _text_ranks(spans: Spans, column: str, rows: Array) -> Array:
    numbers, inverse = np.unique(spans[column][rows], return_inverse=True)
    texts: list[Any] = [spans.strings[number] for number in numbers]
    rank = np.empty(len(texts), np.int64)
    rank[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return rank[inverse]
