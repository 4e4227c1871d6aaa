"""Between whom a span hangs: from, to, layer, via and library of edges and findings."""

from __future__ import annotations

import re
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, group, is_in, members
from tracefill.audit.spans import CLIENT, CONSUMER, SERVER
from tracefill.audit.targets import Targets

LAYERS = ("gateway", "calls", "handoff", "messages", "jobs", "data")
GATEWAY, CALLS, HANDOFF, MESSAGES, JOBS, DATA = range(6)

# Instrumentations of schedulers and task queues, by a word of their name.
_JOB_LIBRARY = re.compile(
    r"tracefill\.jobs\b|instrumentation[./-]schedule\b|spring-scheduling|"
    r"(?<![a-z])(celery|apscheduler|rq|arq|huey|dramatiq|taskiq|procrastinate|airflow|quartz|hangfire|sidekiq|bullmq)(?![a-z])"
)


class Routes(NamedTuple):
    """Columns, one entry for each far span; all but the layer are numbers of strings."""

    source: Array
    target: Array
    layer: Array
    via: Array
    library: Array

    @property
    def keys(self) -> Array:
        """One number for each distinct route."""
        return combine(*self)


class Atlas:
    """Knows the usual ways of a system, and tells the route of any span by them."""

    def __init__(self, forest: Forest) -> None:
        self.forest, self.targets = forest, Targets(forest)

    def routes(self, far: Array, near: Array, *, source: Array | None = None, layer: int | None = None) -> Routes:
        """The routes to the far rows; `near` rows may be -1. Told by the spans unless they are given: the services
        they come from, and the layer."""
        forest = self.forest
        source = self.sources(far, near) if source is None else source
        found = near >= 0
        from_a_call = forest.is_near_kind[near] & found
        layers = self._layers(far, own=~from_a_call & (source == forest["service"][far]))
        if layer is not None:
            layers = np.where(layers == JOBS, JOBS, np.full(len(far), layer))
        via = forest["destination"][far].copy()
        of_near = (via == 0) & found & (layers == MESSAGES)
        via[of_near] = forest["destination"][near[of_near]]
        via = np.where(via == 0, forest["name"][far], via)
        return Routes(source, forest["service"][far], layers, via, forest["library"][far])

    def sources(self, far: Array, near: Array) -> Array:
        """The service of the near span, else the one that usually calls, else the far span's own."""
        found = near >= 0
        source = self.forest["service"][far].copy()
        source[found] = self.forest["service"][near[found]]
        called = ~found & self.forest.is_far_kind[far]
        source[called] = self.usual_callers(far[called])
        return source

    def _layers(self, far: Array, own: Array) -> Array:
        forest = self.forest
        kind = forest["kind"][far]
        layers = np.full(len(far), HANDOFF)
        layers[forest["database"][far] & (kind == CLIENT)] = DATA
        layers[kind == SERVER] = CALLS
        layers[(kind == SERVER) & own] = GATEWAY
        layers[kind == CONSUMER] = MESSAGES
        layers[self.is_job_library[forest["library"][far]]] = JOBS
        return layers

    @cached_property
    def is_job_library(self) -> Array:
        """For each string, whether it names the instrumentation of a scheduler or task queue."""
        strings = self.forest.spans.strings
        is_job = np.zeros(len(strings), bool)
        for number in np.flatnonzero(np.bincount(self.forest["library"], minlength=len(strings))):
            is_job[number] = bool(_JOB_LIBRARY.search(strings[number].lower()))
        return is_job

    # --- usual callers ---

    def usual_callers(self, far: Array) -> Array:
        """The service that usually calls the operation of each SERVER or CONSUMER: one that somebody in the trace has
        called and that is not in the trace itself, else one of those in the trace, else whoever it may be.

        A span without a parent id was called by somebody in its trace or by nobody: its own service stands for nobody.
        """
        operations = self.forest.operation[far]
        callers = self.forest["service"][far].copy()
        begun_here = self.forest["parent_id"][far] == 0
        for operation, ours in members(operations):
            usual = self._callers_of.get(operation, [])
            if usual:
                callers[ours[~begun_here[ours]]] = usual[0]
            for service in reversed(usual):
                callers[ours[self._is_in_trace(far[ours], service)]] = service
            for service in reversed(usual):
                callers[ours[self._is_called_in_vain(far[ours], service)]] = service
        return callers

    def usually_calls(self, service: Array, far: Array) -> Array:
        """Whether each service is seen to call the operation of each SERVER or CONSUMER."""
        known, near = self.forest.crossings
        pairs = combine(self.forest["service"][near], self.forest.operation[known])
        return is_in(combine(service, self.forest.operation[far]), pairs)

    @cached_property
    def _callers_of(self) -> dict[int, list[int]]:
        """The services that call each operation, the most frequent first."""
        forest = self.forest
        far, near = forest.crossings
        operation, caller = forest.operation[far], forest["service"][near]
        first, counts, _ = group(combine(operation, caller))
        callers: dict[int, list[int]] = {}
        texts = forest.spans.strings
        rows = zip(counts.tolist(), caller[first].tolist(), operation[first].tolist(), strict=True)
        for _, service, number in sorted(rows, key=lambda row: (-row[0], texts[row[1]])):
            callers.setdefault(number, []).append(service)
        return callers

    def _is_in_trace(self, far: Array, service: int) -> Array:
        """Whether the service has a span, other than the far one, in the trace of each far row."""
        traces = self._traces_of(service)
        own = self.forest["service"][far] == service
        count = np.searchsorted(traces, self.forest.trace[far], "right") - np.searchsorted(
            traces, self.forest.trace[far]
        )
        return np.asarray(count > own)

    def _is_called_in_vain(self, far: Array, service: int) -> Array:
        """Whether somebody calls the service in the trace of each far row, and it has no span there."""
        return is_in(self.forest.trace[far], self._traces_called_in_vain(service))

    def _traces_called_in_vain(self, service: int) -> Array:
        if service not in self._in_vain:
            senders = self._unanswered
            targets = combine(self.targets.topic(senders), self.forest["peer"][senders])
            first, _, numbers = group(targets)
            leads_there = np.array([service in self.targets.services_of(row) for row in senders[first].tolist()], bool)
            traces = self.forest.trace[senders[leads_there[numbers]]]
            self._in_vain[service] = np.setdiff1d(traces, self._traces_of(service))
        return self._in_vain[service]

    @cached_property
    def _unanswered(self) -> Array:
        """CLIENT and PRODUCER spans that nobody continues, in traces where a parent is missing."""
        forest = self.forest
        has_orphan = np.zeros(forest.trace_count, bool)
        has_orphan[forest.trace[forest.lacks_parent]] = True
        senders = forest.senders[has_orphan[forest.trace[forest.senders]]]
        return senders[~is_in(senders, forest.reached[0])]

    @cached_property
    def _in_vain(self) -> dict[int, Array]:
        return {}

    def _traces_of(self, service: int) -> Array:
        """The trace of each span of the service, in order."""
        if service not in self._traces:
            self._traces[service] = self.forest.trace[self.forest["service"] == service]
        return self._traces[service]

    @cached_property
    def _traces(self) -> dict[int, Array]:
        return {}

    def are_in_trace(self, far: Array, services: Array) -> Array:
        """Whether each of the services has a span, other than the far one, in the trace of the far row."""
        seen = np.zeros(len(far), bool)
        for service, ours in members(services):
            seen[ours] = self._is_in_trace(far[ours], service)
        return seen
