"""Realistic systems: services that call, send, hand on, schedule and query; with faults planted and the truth recorded.

A `System` simulates its traffic span by span. Each fault changes what the simulation does, never what the audit is
told, and writes down what an audit must find: `truth` counts (cause, layer, from, to, via, library).

The spans are neutral objects, so that readers' tests can write them in every format.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from tracefill.audit.spans import (
    CLIENT,
    CONSUMER,
    INTERNAL,
    PRODUCER,
    SERVER,
    Spans,
    SpansBuilder,
    destination_of,
    is_database,
    peer_of,
    process_name,
    subject_of,
    thread_of,
)

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
BEGIN = 1_767_225_600 * SECOND
FAR_KINDS = (SERVER, CONSUMER)


@dataclass
class Span:
    """One span as a program would export it."""

    trace_id: int
    span_id: int
    parent_id: int = 0
    name: str = "work"
    kind: int = INTERNAL
    service: str = "shop"
    instance: str = "1"
    library: str = "shop"
    start: int = BEGIN
    end: int = BEGIN + 10 * MILLISECOND
    attributes: dict[str, str | int] = field(default_factory=dict)
    links: list[tuple[int, int]] = field(default_factory=list)


def table(spans: Iterable[Span]) -> Spans:
    """The span table that a reader makes of these spans."""
    builder = SpansBuilder()
    for span in spans:
        builder.append(
            trace_id_high=span.trace_id >> 64,
            trace_id_low=span.trace_id & (1 << 64) - 1,
            span_id=span.span_id,
            parent_id=span.parent_id,
            start=span.start,
            end=span.end,
            thread=thread_of(span.attributes),
            kind=span.kind,
            database=is_database(span.attributes),
            name=builder.intern(span.name),
            service=builder.intern(span.service),
            process=builder.intern(process_name(span.service, span.instance)),
            library=builder.intern(span.library),
            destination=builder.intern(destination_of(span.attributes)),
            peer=builder.intern(peer_of(span.attributes)),
            subject=subject_of(span.attributes),
        )
        for trace_id, span_id in span.links:
            builder.append_link(trace_id >> 64, trace_id & (1 << 64) - 1, span_id)
    return builder.build()


def damage(lines: list[str], random_: random.Random, count: int) -> tuple[list[str], list[int]]:
    """The lines with damaged ones put between them, and the numbers of those, from 1."""
    kinds = ['{"resourceSpans": [', "\x00\x01", "[1, 2", '"a string"', "nothing", '{} {"a": 1}', '{"a": NaN}']
    damaged = sorted(random_.sample(range(len(lines) + count), count))
    mixed = list(lines)
    for place in damaged:
        mixed.insert(place, random_.choice(kinds))
    return mixed, [place + 1 for place in damaged]


# --- what a system is made of ---


@dataclass
class Service:
    name: str
    http: str  # its HTTP client's instrumentation
    server: str
    kafka: str
    threads_told: bool
    operations: list[Operation] = field(default_factory=list)


@dataclass
class Operation:
    service: Service
    name: str
    steps: list[Step] = field(default_factory=list)


@dataclass
class Call:
    to: Operation
    library: str = ""  # another client than the service's own
    asks: str = ""  # the host it asks for; the service's name unless told


@dataclass
class Send:
    topic: Topic
    library: str = ""


@dataclass
class Query:
    table: str


@dataclass
class Inner:
    name: str
    steps: list[Step]


@dataclass
class HandOff:
    name: str
    steps: list[Step]


Step = Call | Send | Query | Inner | HandOff


@dataclass
class Topic:
    name: str
    readers: list[Operation]
    batch: bool = False


class Context(NamedTuple):
    """What is handed on: a trace and a span, and the chain that it is in truth."""

    trace_id: int
    span_id: int
    chain: int


class Edge(NamedTuple):
    """Where something can be cut."""

    source: str
    library: str
    target: str
    via: str


@dataclass
class Cut:
    """Far sides of these edges begin anew, in this share of the cases."""

    cause: str
    applies: Callable[[Edge], bool]
    share: float = 1.0


Truth = tuple[str, str, str, str, str, str]  # cause, layer, from, to, via, library


class System:
    """A system of 8 to 30 services under ten minutes of traffic. Without a plan nothing is wrong with it.

    After `run`: `spans`, in no order; `truth`; `whole`, `total`, `torn_off`, `begun_outside` and `left_out` as the
    audit must count them.
    """

    def __init__(self, seed: int, *, requests: int = 300, seconds: int = 600, skew_seconds: float = 2.0) -> None:
        self.random = random.Random(seed)
        self.requests, self.seconds = requests, seconds
        self.spans: list[Span] = []
        self.lost: dict[tuple[int, int], tuple[Span, str]] = {}
        self.truth: Counter[Truth] = Counter()
        self.chain_of: dict[int, int] = {}
        self.broken: set[int] = set()
        self.cuts: list[Cut] = []
        self.short_scopes: set[str] = set()
        self.lost_hand_offs: dict[str, float] = {}
        self.unsampled: dict[str, float] = {}
        self.unexported: dict[str, float] = {}
        self.crashes: dict[tuple[str, str], int] = {}
        self.truncating: set[str] = set()
        self.streams: set[str] = set()
        self.slow: dict[str, float] = {}
        self.afterwards: list[Callable[[System], None]] = []
        self.begun_outside_chains: set[int] = set()
        self.late_children: list[Span] = []
        self._sampled: dict[tuple[int, str], bool] = {}
        self._build(skew_seconds)

    # --- the plan ---

    def _build(self, skew_seconds: float) -> None:
        r = self.random
        names = ["web", *r.sample(_SERVICE_NAMES, r.randint(7, 29))]
        self.services = [self._service(name) for name in names]
        self.instances = {s.name: [str(n) for n in range(1, r.randint(1, 3) + 1)] for s in self.services}
        self.skews = {
            (service, instance): round(r.uniform(-skew_seconds, skew_seconds) * SECOND) if r.random() < 0.5 else 0
            for service, instances in self.instances.items()
            for instance in instances
        }
        workers = self.services[-max(len(self.services) // 5, 2) :]
        callees = self.services[1 : -len(workers)]
        for service in [self.services[0], *callees]:
            for number in range(r.randint(1, 3)):
                noun = service.name if number == 0 else r.choice(_NOUNS)
                method = r.choice(["GET", "POST"])
                path = f"/{noun}/{{id}}" if number else f"/{noun}"
                service.operations.append(Operation(service, f"{method} {path}"))
        self.topics = [self._topic(number, workers) for number in range(len(workers))]
        self._wire(callees)

    def _service(self, name: str) -> Service:
        r = self.random
        return Service(
            name,
            http=f"opentelemetry.instrumentation.{r.choice(['requests', 'httpx', 'aiohttp_client'])}",
            server=f"opentelemetry.instrumentation.{r.choice(['flask', 'fastapi', 'django'])}",
            kafka=f"opentelemetry.instrumentation.{r.choice(['kafka', 'aiokafka', 'confluent_kafka'])}",
            threads_told=r.random() < 0.5,
        )

    def _topic(self, number: int, workers: list[Service]) -> Topic:
        r = self.random
        topic = Topic(f"{r.choice(_NOUNS)}.{number}", [], batch=number == 1)
        for worker in r.sample(workers, 1 if topic.batch else r.randint(1, 2)):
            reader = Operation(worker, f"{topic.name} process")
            reader.steps = [Inner("handle", [Query(f"{worker.name}_log")])]
            topic.readers.append(reader)
        return topic

    def _wire(self, callees: list[Service]) -> None:
        """Every operation is called by a service before its own, so that no call comes back."""
        r = self.random
        order = [self.services[0], *callees]
        for place, service in enumerate(order[1:], 1):
            for operation in service.operations:
                for caller in r.sample(order[:place], min(place, r.randint(1, 2))):
                    r.choice(caller.operations).steps.append(Call(operation))
                operation.steps.append(Query(service.name))
        for topic in self.topics:
            for service in r.sample(order, 2):
                r.choice(service.operations).steps.append(Send(topic))
        for service in r.sample(order, len(order) // 2):
            r.choice(service.operations).steps.append(HandOff(f"render {service.name}", [Query(service.name)]))

    @property
    def callees(self) -> list[Service]:
        return [service for service in self.services[1:] if service.operations]

    def calls(self) -> list[tuple[Operation, Call]]:
        """Every call in the plan, with the operation that makes it."""
        return [
            (operation, step)
            for service in self.services
            for operation in service.operations
            for step in operation.steps
            if isinstance(step, Call)
        ]

    def sends(self) -> list[tuple[Operation, Send]]:
        return [
            (operation, step)
            for service in self.services
            for operation in service.operations
            for step in operation.steps
            if isinstance(step, Send)
        ]

    # --- the traffic ---

    def run(self) -> System:
        r = self.random
        entries = self.services[0].operations
        for _ in range(self.requests):
            at = BEGIN + r.randrange((self.seconds - 10) * SECOND)
            context = self.begin()
            if r.random() < 0.1:
                outside = Context(context.trace_id, r.getrandbits(64), context.chain)
                self.begun_outside_chains.add(context.chain)
                context = outside
            self._serve(r.choice(entries), context, at)
        for service in self.services:
            self._scheduled(service)
        self._strangers_topic()
        for change in self.afterwards:
            change(self)
        self._finish()
        return self

    def begin(self) -> Context:
        """A new trace; nobody is above it."""
        trace_id = self.random.getrandbits(128) | 1 << 100
        chain = len(self.chain_of)
        self.chain_of[trace_id] = chain
        return Context(trace_id, 0, chain)

    def span(self, context: Context, service: Service, instance: str, **told: object) -> Span:
        span = Span(
            context.trace_id,
            self.random.getrandbits(63) | 1,
            context.span_id,
            service=service.name,
            instance=instance,
            library=service.name,
        )
        span = replace(span, **told)
        if service.threads_told and "thread.id" not in span.attributes:
            span.attributes["thread.id"] = 1000 + span.kind
        self.spans.append(span)
        self._lose(span)
        return span

    def _lose(self, span: Span) -> None:
        key, service = (span.trace_id, span.span_id), span.service
        r = self.random
        if service in self.unsampled:
            sampled = self._sampled.setdefault((span.trace_id, service), r.random() >= self.unsampled[service])
            if not sampled:
                self.lost[key] = span, "sampled_out"
        if span.kind in (CLIENT, SERVER) and r.random() < self.unexported.get(service, 0):
            self.lost[key] = span, "not_exported"

    def _alive(self, service: str, at: int) -> str:
        alive = [i for i in self.instances[service] if at < self.crashes.get((service, i), at + 1)]
        return self.random.choice(alive or self.instances[service])

    def _under(self, span: Span, chain: int) -> Context:
        return Context(span.trace_id, span.span_id, chain)

    def _takes(self, low: float = 1, high: float = 12) -> int:
        """A time in nanoseconds, of some milliseconds."""
        return round(self.random.uniform(low, high) * MILLISECOND)

    def _serve(self, operation: Operation, context: Context, at: int, peer: str = "", path: str = "") -> Span:
        """A SERVER span and all that it causes; returns it with its end."""
        service, instance = operation.service, self._alive(operation.service.name, at)
        attributes: dict[str, str | int] = {"http.route": operation.name.split()[1]}
        if path:
            attributes["url.path"] = path
        span = self.span(
            context, service, instance, name=operation.name, kind=SERVER, library=service.server, start=at,
            attributes=attributes,
        )  # fmt: skip
        begin = at + self._takes(0.2, 2) + round(self.slow.get(service.name, 0) / 2 * SECOND)
        span.end = self._do(operation, operation.steps, span, context.chain, begin) + self._takes(0.2, 2)
        span.end += round(self.slow.get(service.name, 0) / 2 * SECOND)
        if service.name in self.streams:
            self._begin_too_late(span, service, context.chain)
        return span

    def _do(self, operation: Operation, steps: list[Step], parent: Span, chain: int, at: int) -> int:
        """The steps one after another; returns when the last is over."""
        context = self._under(parent, chain)
        for step in steps:
            at += self._takes(0.1, 1)
            if isinstance(step, Call):
                at = self._call(operation, step, parent, context, at)
            elif isinstance(step, Send):
                at = self._send(operation, step, parent, context, at)
            elif isinstance(step, Query):
                at = self._query(step, parent, context, at)
            elif isinstance(step, Inner):
                inner = self.span(context, operation.service, parent.instance, name=step.name, start=at)
                inner.end = at = self._do(operation, step.steps, inner, chain, at) + self._takes(0.1, 1)
            else:
                at = self._hand_off(operation, step, parent, context, at)
        return at

    def _query(self, step: Query, parent: Span, context: Context, at: int) -> int:
        service = next(s for s in self.services if s.name == parent.service)
        end = at + self._takes()
        self.span(
            context, service, parent.instance, name=f"SELECT {step.table}", kind=CLIENT, start=at, end=end,
            library="opentelemetry.instrumentation.psycopg",
            attributes={"db.system.name": "postgresql", "server.address": "db"},
        )  # fmt: skip
        return end

    def _call(self, operation: Operation, step: Call, parent: Span, context: Context, at: int) -> int:
        service, callee = operation.service, step.to.service
        path = step.to.name.split()[1].replace("{id}", str(self.random.randrange(10**6)))
        attributes: dict[str, str | int] = {"server.address": step.asks or callee.name}
        if self.random.random() < 0.5:
            attributes["url.full"] = f"http://{callee.name}:8080{path}"
        client = self.span(
            context, service, parent.instance, name=step.to.name.split()[0], kind=CLIENT, start=at,
            library=step.library or service.http, attributes=attributes,
        )  # fmt: skip
        edge = Edge(service.name, client.library, callee.name, step.to.name)
        inner = self._over(edge, self._under(client, context.chain), "calls", callee.server)
        server = self._serve(step.to, inner, at + self._takes(0.2, 3), path=path)
        client.end = server.end + self._takes(0.2, 3)
        if service.name in self.streams or callee.name in self.streams:
            client.end += 60 * MILLISECOND
        return client.end

    def _over(self, edge: Edge, context: Context, layer: str, far_library: str) -> Context:
        """The context on the far side of an edge: the same, or one that began anew."""
        if edge.target in self.truncating and context.trace_id >> 64:
            self._tear("id_truncated", layer, edge, far_library, context.chain)
            return context._replace(trace_id=self._truncated(context))
        for cut in self.cuts:
            if cut.applies(edge) and self.random.random() < cut.share:
                self._tear(cut.cause, layer, edge, far_library, context.chain)
                return self._torn(context.chain)
        return context

    def _truncated(self, context: Context) -> int:
        trace_id = context.trace_id & (1 << 64) - 1
        self.chain_of[trace_id] = context.chain
        return trace_id

    def _tear(self, cause: str, layer: str, edge: Edge, library: str, chain: int) -> None:
        self.truth[cause, layer, edge.source, edge.target, edge.via, library] += 1
        self.broken.add(chain)

    def _torn(self, chain: int) -> Context:
        """A new trace of an old chain."""
        trace_id = self.random.getrandbits(128) | 1 << 100
        self.chain_of[trace_id] = chain
        return Context(trace_id, 0, chain)

    def _send(self, operation: Operation, step: Send, parent: Span, context: Context, at: int) -> int:
        service, topic = operation.service, step.topic
        end = at + self._takes(0.5, 4)
        sent = self.span(
            context, service, parent.instance, name=f"{topic.name} send", kind=PRODUCER, start=at, end=end,
            library=step.library or service.kafka, attributes={"messaging.destination.name": topic.name},
        )  # fmt: skip
        for reader in topic.readers:
            received = end + self._takes(1, 400)
            if topic.batch:
                self._receive_batch(reader, topic, sent, received)
            else:
                edge = Edge(service.name, sent.library, reader.service.name, topic.name)
                inner = self._over(edge, self._under(sent, context.chain), "messages", reader.service.kafka)
                self._receive(reader, topic, inner, received)
        return end

    def _receive(self, reader: Operation, topic: Topic, context: Context, at: int) -> None:
        service, instance = reader.service, self._alive(reader.service.name, at)
        consumer = self.span(
            context, service, instance, name=reader.name, kind=CONSUMER, start=at, end=at + self._takes(0.1, 0.5),
            library=service.kafka, attributes={"messaging.destination.name": topic.name},
        )  # fmt: skip
        if service.name not in self.short_scopes:
            consumer.end = self._do(reader, reader.steps, consumer, context.chain, at) + self._takes(0.1, 1)
            return
        begin = consumer.end + self._takes(0.05, 2)
        for step in reader.steps:
            assert isinstance(step, Inner)
            edge = Edge(service.name, "", service.name, topic.name)
            self._tear("scope_too_short", "messages", edge, service.name, context.chain)
            root = self.span(self._torn(context.chain), service, instance, name=step.name, start=begin)
            root.end = begin = self._do(reader, step.steps, root, context.chain, begin) + self._takes(0.1, 1)

    def _receive_batch(self, reader: Operation, topic: Topic, sent: Span, at: int) -> None:
        """A batch is a chain of its own, that begins by its links."""
        context = self.begin()
        consumer = self.span(
            context, reader.service, self._alive(reader.service.name, at), name=reader.name, kind=CONSUMER, start=at,
            library=reader.service.kafka, attributes={"messaging.destination.name": topic.name},
            links=[(sent.trace_id, sent.span_id)],
        )  # fmt: skip
        consumer.end = self._do(reader, reader.steps, consumer, context.chain, at) + self._takes(0.1, 1)

    def _hand_off(self, operation: Operation, step: HandOff, parent: Span, context: Context, at: int) -> int:
        """Work on another thread: it begins while the request is open, and may outlast it."""
        if self.random.random() < self.lost_hand_offs.get(step.name, 0):
            edge = Edge(parent.service, "", parent.service, step.name)
            self._tear("handoff_lost", "handoff", edge, parent.service, context.chain)
            context = self._torn(context.chain)
        began = at + self._takes(0.1, 0.4)
        job = self.span(
            context, operation.service, parent.instance, name=step.name, start=began,
            attributes={"thread.id": 2000} if operation.service.threads_told else {},
        )  # fmt: skip
        job.end = self._do(operation, step.steps, job, context.chain, began) + self._takes()
        return at + self._takes(0.5, 1)

    def _begin_too_late(self, server: Span, service: Service, chain: int) -> None:
        """A child that begins when its SERVER has ended, while the CLIENT still reads the stream."""
        begin = server.end + self._takes(1, 5)
        late = self.span(
            self._under(server, chain), service, server.instance, name="stream", start=begin,
            end=begin + self._takes(1, 5), attributes=dict(server.attributes),
        )  # fmt: skip
        self.late_children.append(late)

    # --- what is no fault ---

    def _scheduled(self, service: Service) -> None:
        """Jobs with roots of their own, and health checks."""
        r = self.random
        interval = r.uniform(15, 60)
        offset = r.uniform(0, interval)
        instance = self.instances[service.name][0]
        crash = self.crashes.get((service.name, instance), BEGIN + self.seconds * SECOND)
        for number in range(int((self.seconds - 10 - offset) / interval)):
            at = BEGIN + round((offset + number * interval) * SECOND)
            if at > crash:
                break
            root = self.span(self.begin(), service, instance, name=f"sweep {service.name}", start=at)
            root.end = self._do(Operation(service, ""), [Query(service.name)], root, 0, at) + self._takes()
        for number in range(int(self.seconds / 20)):
            at = BEGIN + round((offset / 7 + number * 20) * SECOND)
            if service.operations and at < BEGIN + (self.seconds - 5) * SECOND:
                check = Operation(service, "GET /healthz")
                self._serve(check, self.begin(), at, path="/healthz")

    def _strangers_topic(self) -> None:
        topic = Topic("strangers", [])
        worker = self.services[-1]
        reader = Operation(worker, "strangers process", [Inner("handle", [Query("strangers")])])
        if worker.name in self.short_scopes:
            return
        for _ in range(40):
            self._receive(reader, topic, self.begin(), BEGIN + self.random.randrange((self.seconds - 5) * SECOND))

    # --- the end ---

    def _finish(self) -> None:
        self._crash()
        for span in self.spans:
            skew = self.skews[span.service, span.instance]
            span.start += skew
            span.end += skew
        kept = [span for span in self.spans if (span.trace_id, span.span_id) not in self.lost]
        self.spans = kept
        self.random.shuffle(self.spans)
        self._count()

    def _crash(self) -> None:
        """Whatever was open in an instance when it crashed never ended, and what it would have done never began."""
        never: set[tuple[int, int]] = set()
        for span in self.spans:  # parents come before their children
            key, at = (span.trace_id, span.span_id), self.crashes.get((span.service, span.instance))
            if (span.trace_id, span.parent_id) in never or (at is not None and span.start > at):
                never.add(key)
            elif at is not None and span.end > at:
                self.lost[key] = span, "unfinished"
        self.spans = [span for span in self.spans if (span.trace_id, span.span_id) not in never]

    def _count(self) -> None:
        """The truth about what is missing, skewed or late, and about the chains, by the definitions."""
        by_id = self.by_id
        start, end = min(s.start for s in self.spans), max(s.end for s in self.spans)
        edge = min(30 * SECOND, (end - start) / 20)
        self._count_skews(by_id)
        in_window = self._count_missing(lambda at: at - start < edge or end - at < edge)
        for late in self.late_children:
            server = by_id.get((late.trace_id, late.parent_id))
            if server and ("thread.id" in late.attributes or (server.trace_id, server.parent_id) in by_id):
                self.truth["premature_end", "handoff", late.service, late.service, late.name, late.library] += 1
        chains = {self.chain_of[span.trace_id] for span in self.spans}
        traces = {span.trace_id for span in self.spans}
        left_out = (in_window - self.broken) & chains
        self.left_out = len(left_out)
        self.total = len(chains - left_out)
        self.whole = len(chains - left_out - self.broken)
        self.torn_off = len(traces) - len(chains)
        self.begun_outside = len(self.begun_outside_chains - left_out)

    def _count_skews(self, by_id: dict[tuple[int, int], Span]) -> None:
        for span in self.spans:
            parent = by_id.get((span.trace_id, span.parent_id))
            if span.kind != SERVER or parent is None or parent.kind != CLIENT:
                continue
            if span.start < parent.start or span.start > parent.end:
                self.truth["clock_skew", "calls", parent.service, span.service, span.name, span.library] += 1

    @property
    def by_id(self) -> dict[tuple[int, int], Span]:
        return {(span.trace_id, span.span_id): span for span in self.spans}

    def _from(self, child: Span, lost: Span, cause: str) -> str:
        """The service that usually calls the child's operation, of those in the trace, where nothing tells more."""
        if child.kind not in FAR_KINDS or cause != "not_exported":
            return lost.service
        in_trace = {span.service for span in self._by_trace[child.trace_id] if span is not child}
        callers = self._usual_callers[child.service, child.name]
        return max(callers, key=lambda service: (service in in_trace, callers[service]))

    @cached_property
    def _by_trace(self) -> dict[int, list[Span]]:
        traces: dict[int, list[Span]] = defaultdict(list)
        for span in self.spans:
            traces[span.trace_id].append(span)
        return traces

    @cached_property
    def _usual_callers(self) -> dict[tuple[str, str], Counter[str]]:
        callers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        by_id = self.by_id
        for span in self.spans:
            above = [(span.trace_id, span.parent_id)] if span.parent_id else span.links
            if span.kind in FAR_KINDS:
                callers[span.service, span.name].update(by_id[key].service for key in above if key in by_id)
        return callers

    def _count_missing(self, in_edge: Callable[[int], bool]) -> set[int]:
        """Counts the missing parents; returns the chains with some that are put down to the window."""
        children: dict[tuple[int, int], list[Span]] = defaultdict(list)
        for span in self.spans:
            if (span.trace_id, span.parent_id) in self.lost:
                children[span.trace_id, span.parent_id].append(span)
        window = set()
        for key, orphans in children.items():
            lost, cause = self.lost[key]
            first = min(orphans, key=lambda span: span.start - self.skews[span.service, span.instance])
            if in_edge(first.start):
                window.add(self.chain_of[first.trace_id])
                continue
            via = destination_of(first.attributes) or first.name
            source = self._from(first, lost, cause)
            self.truth[cause, layer_of(first), source, first.service, via, first.library] += 1
            self.broken.add(self.chain_of[first.trace_id])
        return window


def layer_of(span: Span) -> str:
    """The layer of an edge whose near side is in another service, or missing."""
    if span.kind == SERVER:
        return "calls"
    if span.kind == CONSUMER:
        return "messages"
    return "data" if span.kind == CLIENT and is_database(span.attributes) else "handoff"


_SERVICES = """
    accounts audit basket billing catalog checkout coupons customers delivery devices discounts exports fraud identity
    imports inventory invoices ledger locations loyalty mailer media notify offers orders payments pictures prices
    products quotes ratings refunds reports returns reviews search sessions shipping stock suppliers taxes tickets
    users vouchers warehouse
"""
_SERVICE_NAMES = _SERVICES.split()
_NOUNS = [
    "items",
    "lines",
    "notes",
    "parcels",
    "places",
    "plans",
    "points",
    "rates",
    "rules",
    "sheets",
    "slots",
    "views",
]
