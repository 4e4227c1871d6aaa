"""Faults to plant in a system before it runs: one function for each cause of the contract.

Each looks for a place where the cause shows as the contract defines it, and makes one where the system has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.audit.systems import (
    BEGIN,
    SECOND,
    Call,
    Context,
    Cut,
    Edge,
    HandOff,
    Operation,
    Send,
    Service,
    Span,
    System,
    layer_of,
)
from tracefill.audit.spans import CLIENT, INTERNAL, SERVER, destination_of


def not_propagated(system: System) -> None:
    """A caller with a client of its own for one callee, which continues everybody else."""
    operation, call = _call_of_a_busy_callee(system)
    call.library = "opentelemetry.instrumentation.urllib"
    _cut(system, "not_propagated", lambda edge: edge.library == call.library and edge.source == operation.service.name)


def not_propagated_at_times(system: System) -> None:
    operation, call = _call_of_a_busy_callee(system)
    wanted = Edge(operation.service.name, operation.service.http, call.to.service.name, call.to.name)
    _cut(system, "not_propagated", lambda edge: edge == wanted, share=0.3)


def not_propagated_messages(system: System) -> None:
    operation, send = system.random.choice([sent for sent in system.sends() if not sent[1].topic.batch])
    others = [step for other, step in system.sends() if step.topic is send.topic and other.service != operation.service]
    if not others:
        _another(system, operation.service).steps.append(Send(send.topic))
    send.library = "opentelemetry.instrumentation.confluent_kafka.raw"
    _cut(system, "not_propagated", lambda edge: edge.library == send.library and edge.source == operation.service.name)


def not_extracted(system: System) -> None:
    """A callee that continues nobody, though two call it who are continued elsewhere."""
    callee = system.random.choice(system.callees[2:])
    for caller in system.services[0], _before(system, callee):
        _call(system, caller, callee)
        _call(system, caller, _after(system, caller, but=callee))
    _cut(system, "not_extracted", lambda edge: edge.target == callee.name)


def not_extracted_messages(system: System) -> None:
    """A consumer that continues nobody, though two send to it."""
    topic = next(topic for topic in system.topics if not topic.batch)
    reader = topic.readers[0].service
    reader.kafka = "shop.consumer"
    for other in system.topics:
        other.readers = [r for r in other.readers if r.service is not reader or other is topic]
    for service in system.services[:2]:
        service.operations[0].steps.append(Send(topic))
    _cut(system, "not_extracted", lambda edge: edge.target == reader.name)


def format_mismatch(system: System) -> None:
    """Two who work with others, only not with each other."""
    callee = system.random.choice(system.callees[2:])
    caller = _before(system, callee)
    _call(system, caller, callee)
    _call(system, caller, _after(system, caller, but=callee))
    _call(system, system.services[0], callee)
    _cut(system, "format_mismatch", lambda edge: edge.source == caller.name and edge.target == callee.name)


def id_truncated(system: System) -> None:
    system.truncating.add(system.random.choice(system.callees).name)


def handoff_lost(system: System) -> None:
    """Of one name all, of another some."""
    names = [step.name for s in system.services for o in s.operations for step in o.steps if isinstance(step, HandOff)]
    always, at_times = system.random.sample(names, 2)
    system.lost_hand_offs |= {always: 1.0, at_times: 0.2}


def scope_too_short(system: System) -> None:
    topic = next(topic for topic in system.topics if not topic.batch)
    system.short_scopes.add(topic.readers[0].service.name)


def sampled_out(system: System) -> None:
    """A service in the middle that decides for itself, and is the only one to call the next."""
    middle, last = _lonely_pair(system)
    _only_caller(system, middle, last)
    for operation in middle.operations:
        for step in operation.steps:
            if isinstance(step, Send):  # else it is a toss-up which of two consumers is the earliest
                del step.topic.readers[1:]
    system.unsampled[middle.name] = 0.4


def not_exported(system: System) -> None:
    system.unexported[system.random.choice(system.callees).name] = 0.04


def unfinished_by_crash(system: System) -> None:
    service = system.random.choice(system.callees[:3])
    system.instances[service.name] = ["1", "2", "3"]
    for instance in "123":
        system.skews.setdefault((service.name, instance), 0)
    system.slow[service.name] = 60
    system.crashes[service.name, "2"] = BEGIN + round(system.random.uniform(0.3, 0.7) * system.seconds * SECOND)


def unfinished_stream(system: System) -> None:
    """A request that is open for longer than the window, while its children come and go."""

    def stream(system: System) -> None:
        service = system.random.choice(system.callees)
        instance, context = system.instances[service.name][0], system.begin()
        begin, end = BEGIN + system.seconds // 2 * SECOND, max(span.end for span in system.spans)
        server = system.span(context, service, instance, name="GET /events", kind=SERVER, start=begin, end=end + SECOND)
        for at in range(begin + SECOND, end, 5 * SECOND):
            below = context._replace(span_id=server.span_id)
            system.span(below, service, instance, name="event", start=at, end=min(at + SECOND, end))
        system.lost[server.trace_id, server.span_id] = server, "unfinished"

    system.afterwards.append(stream)


def duplicate_id(system: System) -> None:
    """Leaves that took the id of another span of their trace."""

    def reuse(system: System) -> None:
        by_id = system.by_id
        leaves = [leaf for leaf in _leaves(system) if by_id[leaf.trace_id, leaf.parent_id].parent_id]
        for leaf in system.random.sample(leaves, 5):
            parent = by_id[leaf.trace_id, leaf.parent_id]
            above = by_id.get((parent.trace_id, parent.parent_id), leaf)
            leaf.span_id, leaf.parent_id = parent.span_id, parent.parent_id
            _found(system, "duplicate_id", leaf, above.service)

    system.afterwards.append(reuse)


def several_roots(system: System) -> None:
    def uproot(system: System) -> None:
        for leaf in system.random.sample(_leaves(system), 7):
            leaf.parent_id = 0
            _found(system, "several_roots", leaf, leaf.service)

    system.afterwards.append(uproot)


def cycle(system: System) -> None:
    def close(system: System) -> None:
        for leaf in system.random.sample(_leaves(system), 4):
            leaf.parent_id = leaf.span_id
            _found(system, "cycle", leaf, leaf.service)

    system.afterwards.append(close)


def glued(system: System) -> None:
    """A loop that a request started, and that runs in its trace ever since."""

    def loop(system: System) -> None:
        requests = [span for span in system.spans if span.kind == SERVER and span.end < BEGIN + 200 * SECOND]
        request = system.random.choice(requests)
        service = next(service for service in system.services if service.name == request.service)
        below = Context(request.trace_id, request.span_id, system.chain_of[request.trace_id])
        for number in range(8):
            start = request.end + (11 + 20 * number) * SECOND
            run = system.span(
                below, service, request.instance, name="poll", start=start, end=start + SECOND,
                attributes={"thread.id": 3000 + number},
            )  # fmt: skip
            if number:
                _found(system, "glued", run, run.service, layer="jobs")

    system.afterwards.append(loop)


def premature_end(system: System) -> None:
    system.streams.add(system.random.choice(system.callees).name)


def exported_twice(system: System) -> None:
    def twice(system: System) -> None:
        by_id = system.by_id
        below = [span for span in system.spans if span.kind != SERVER and (span.trace_id, span.parent_id) in by_id]
        for span in system.random.sample(below, 20):
            system.spans.append(replace(span))
            _found(system, "exported_twice", span, by_id[span.trace_id, span.parent_id].service)

    system.afterwards.append(twice)


def _leaves(system: System) -> list[Span]:
    """Spans inside a process that have no children."""
    parents = {(span.trace_id, span.parent_id) for span in system.spans}
    return [
        span
        for span in system.spans
        if span.kind in (INTERNAL, CLIENT) and "db.system.name" in span.attributes
        and span.parent_id and (span.trace_id, span.span_id) not in parents
    ]  # fmt: skip


def _found(system: System, cause: str, span: Span, source: str, layer: str = "") -> None:
    via = destination_of(span.attributes) or span.name
    system.truth[cause, layer or layer_of(span), source, span.service, via, span.library] += 1
    if cause not in ("glued", "exported_twice"):
        system.broken.add(system.chain_of[span.trace_id])


def _call(system: System, caller: Service, callee: Service) -> None:
    assert system.services.index(caller) < system.services.index(callee)
    caller.operations[0].steps.append(Call(callee.operations[0]))


def _cut(system: System, cause: str, applies: Callable[[Edge], bool], share: float = 1.0) -> None:
    system.cuts.append(Cut(cause, applies, share))


def _call_of_a_busy_callee(system: System) -> tuple[Operation, Call]:
    """A call to an operation that others of the service's callers reach, too."""
    operation, call = system.random.choice([one for one in system.calls() if one[0].service is not system.services[0]])
    system.services[0].operations[0].steps.append(Call(call.to))
    return operation, call


def _another(system: System, service: Service) -> Operation:
    others = [other for other in system.services[:3] if other is not service and other.operations]
    return system.random.choice(others).operations[0]


def _before(system: System, service: Service) -> Service:
    """A service that may call this one, besides the first."""
    return system.random.choice(system.services[1 : system.services.index(service)])


def _after(system: System, service: Service, but: Service) -> Service:
    place = system.services.index(service)
    return system.random.choice([o for o in system.services[place + 1 :] if o.operations and o is not but])


def _lonely_pair(system: System) -> tuple[Service, Service]:
    return system.callees[0], system.callees[-1]


def _only_caller(system: System, caller: Service, callee: Service) -> None:
    for operation, call in system.calls():
        if call.to.service is callee and operation.service is not caller:
            operation.steps.remove(call)
    for operation in callee.operations:
        caller.operations[0].steps.append(Call(operation))


ALL = [
    not_propagated,
    not_propagated_at_times,
    not_propagated_messages,
    not_extracted,
    not_extracted_messages,
    format_mismatch,
    id_truncated,
    handoff_lost,
    scope_too_short,
    sampled_out,
    not_exported,
    unfinished_by_crash,
    unfinished_stream,
    duplicate_id,
    several_roots,
    cycle,
    glued,
    premature_end,
    exported_twice,
]
