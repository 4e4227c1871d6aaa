"""What all three Kafka clients owe, written once: each says how it sends and how it handles, the broker is a real one."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from opentelemetry import baggage, propagate, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import tracefill
from tests.contracts import ancestors, finished, tracer
from tracefill import tags
from tracefill.context import scope
from tracefill.messages.message_spans import correlation
from tracefill.propagators import TracefillPropagator

DEADLINE_S = 60
DAY_MS = 86_400_000
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
POISON = b"\xff\xfe"


@contextlib.contextmanager
def installed(name: str) -> Iterator[None]:
    tracefill.install(only=[name])
    try:
        yield
    finally:
        tracefill.uninstall()


@contextlib.contextmanager
def written_as(*formats: str) -> Iterator[None]:
    """The global propagator writes these formats."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(TracefillPropagator(inject=formats))
    try:
        yield
    finally:
        propagate.set_global_textmap(before)


def named(headers: Any) -> list[str]:
    return [name.lower() for name, _ in headers or ()]


def of_kind(spans: Any, kind: str) -> list[Any]:
    return sorted((s for s in spans.get_finished_spans() if s.kind.name == kind), key=lambda span: span.start_time)


def work(name: str = "far") -> None:
    tracer.start_span(name).end()


class Clients:
    """How one client library sends and handles."""

    name: str
    #: The module of the integration.
    integration: Any
    #: Contrib's, how it names its spans, and the name of its tracer.
    instrumentor: Any
    contrib_names: tuple[str, str]
    contrib_scope: str
    #: What a producer takes for headers beside None.
    header_shapes: tuple[Callable[[list[Any]], Any], ...] = (list,)

    @pytest.fixture(autouse=True)
    def _with(self, kafka: Any) -> Iterator[None]:
        self.address = kafka.address
        self.topic = f"orders-{uuid.uuid4().hex[:12]}"
        self.numbers = itertools.count()
        yield
        assert not trace.get_current_span().get_span_context().is_valid

    def make_producer(self) -> None:
        """For those that keep one."""

    def send(self, topic: str, value: Any = b"x", headers: Any = None, timestamp_ms: int | None = None) -> None:
        """One message; returns when the broker has it."""
        raise NotImplementedError

    def send_positional(self, topic: str, headers: Any) -> None:
        """The same, all arguments by position."""
        raise NotImplementedError

    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        """Handles the first `count` messages of a topic in the body of the loop that its users write."""
        raise NotImplementedError

    def poll_empty(self, topic: str) -> None:
        """Asks for messages where there are none."""
        raise NotImplementedError

    def fetch(self, topic: str, count: int, handler: Callable[[list[Any]], object]) -> None:
        """Hands the first `count` messages over as the one list that the client returned."""
        raise NotImplementedError

    def consume(self, topic: str, handler: Callable[[Any], object]) -> None:
        """One message, by the integration's `consume`."""
        raise NotImplementedError

    def headers_of(self, message: Any) -> list[tuple[str, Any]]:
        return list(message.headers or ())

    def value_of(self, message: Any) -> Any:
        return message.value

    def send_inside(self, topic: str, value: Any, headers: Any) -> None:
        """`send` from inside of a handler."""
        self.send(topic, value, headers)


class KafkaContract(Clients):
    # ------------------------------------------------------------------------------------------------------- the spans

    def test_spans_have_the_standard_names_and_attributes(self, spans: Any, no_log: Any) -> None:
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.send(self.topic)
            self.handle(self.topic, lambda message: work())
        sent, processed = finished(spans, f"send {self.topic}"), finished(spans, f"process {self.topic}")
        assert (sent.kind.name, processed.kind.name) == ("PRODUCER", "CONSUMER")
        assert ancestors(spans, finished(spans, "far")) == [f"process {self.topic}", f"send {self.topic}", "near"]
        common = {"messaging.system": "kafka", "messaging.destination.name": self.topic}
        assert common.items() <= dict(sent.attributes).items()
        expected = common | {"messaging.destination.partition.id": "0", "messaging.kafka.offset": 0}
        assert expected.items() <= dict(processed.attributes).items()
        assert sent.attributes["messaging.operation.name"] == "send"
        assert processed.attributes["messaging.operation.name"] == "process"
        assert 0 <= processed.attributes["tracefill.message.delivery_time_ms"] < DEADLINE_S * 1000
        assert "tracefill.entry" not in processed.attributes

    def test_lag_is_how_many_more_there_are(self, spans: Any) -> None:
        for _ in range(3):
            self.send(self.topic)
        with installed(self.name):
            self.handle(self.topic, lambda message: None, count=3)
        lags = [span.attributes.get("tracefill.message.lag") for span in of_kind(spans, "CONSUMER")]
        assert lags == [2, 1, 0]

    def test_message_without_context_is_an_entry(self, spans: Any) -> None:
        self.send(self.topic)
        with installed(self.name), tracer.start_as_current_span("worker"):
            self.handle(self.topic, lambda message: work())
        span = finished(spans, f"process {self.topic}")
        assert span.parent is None
        assert span.attributes["tracefill.entry"] is True
        assert ancestors(spans, finished(spans, "far")) == [span.name]

    def test_empty_poll_makes_no_span(self, spans: Any) -> None:
        self.send(self.topic)
        with installed(self.name):
            self.poll_empty(self.topic)
        assert spans.get_finished_spans() == ()

    def test_exception_of_the_handler_goes_on_and_is_current_no_longer(self, spans: Any) -> None:
        def fail(message: Any) -> None:
            work()
            raise ValueError("no such order")

        self.send(self.topic)
        with installed(self.name):
            with pytest.raises(ValueError, match="no such order"):
                self.handle(self.topic, fail)
            assert not trace.get_current_span().get_span_context().is_valid
        gc.collect()
        assert ancestors(spans, finished(spans, "far")) == [f"process {self.topic}"]

    def test_unsampled_message_makes_no_span_and_stays_unsampled(self, spans: Any) -> None:
        self.send(self.topic, headers=[("traceparent", TRACEPARENT[:-1].encode() + b"0")])
        seen: list[Any] = []
        with installed(self.name):
            self.handle(self.topic, lambda message: seen.append(trace.get_current_span().get_span_context()))
        assert [f"{held.trace_id:032x} {held.trace_flags:02x}" for held in seen] == [f"{TRACE_ID} 00"]
        assert spans.get_finished_spans() == ()

    def test_suppressed_is_silent(self, spans: Any) -> None:
        with installed(self.name), suppress_instrumentation():
            self.send(self.topic)
            seen: list[Any] = []
            self.handle(self.topic, lambda message: seen.append(self.headers_of(message)))
        assert seen == [[]]
        assert spans.get_finished_spans() == ()

    # -------------------------------------------------------------------------------------------------- parent or link

    def of_two_days_ago(self, spans: Any) -> Any:
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.send(self.topic, timestamp_ms=int(time.time() * 1000) - 2 * DAY_MS)
            self.handle(self.topic, lambda message: None)
        return finished(spans, f"process {self.topic}")

    def test_old_message_is_linked(self, spans: Any) -> None:
        span = self.of_two_days_ago(spans)
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [finished(spans, f"send {self.topic}").context.span_id]
        assert span.attributes["tracefill.message.delivery_time_ms"] >= 2 * DAY_MS
        assert "tracefill.entry" not in span.attributes

    def test_age_from_which_on_it_is_a_link_is_a_switch(self, spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(correlation, "link_after_s", 3 * 86_400)
        assert ancestors(spans, self.of_two_days_ago(spans)) == [f"send {self.topic}", "near"]

    def test_link_is_a_switch(self, spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(correlation, "single", "link")
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.send(self.topic)
            self.handle(self.topic, lambda message: work())
        span = finished(spans, f"process {self.topic}")
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [finished(spans, f"send {self.topic}").context.span_id]
        assert ancestors(spans, finished(spans, "far")) == [span.name]

    # --------------------------------------------------------------------------------------------------------- batches

    def test_batch_that_is_handled_as_one_is_linked_to_each_sender(self, spans: Any) -> None:
        def all_at_once(messages: list[Any]) -> None:
            assert len(messages) == 3
            work()

        with installed(self.name):
            for name in ("first", "second", "third"):
                with tracer.start_as_current_span(name):
                    self.send(self.topic)
            self.fetch(self.topic, 3, all_at_once)
        gc.collect()
        span = finished(spans, f"process {self.topic}")
        sent = [sender.context.span_id for sender in of_kind(spans, "PRODUCER")]
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == sent
        assert span.attributes["messaging.batch.message_count"] == 3
        assert ancestors(spans, finished(spans, "far")) == [span.name]

    def test_batch_that_is_walked_has_a_span_for_each_message(self, spans: Any) -> None:
        def one_by_one(messages: list[Any]) -> None:
            for message in messages:
                work(f"far {self.value_of(message).decode()}")

        with installed(self.name):
            for name in ("first", "second"):
                with tracer.start_as_current_span(name):
                    self.send(self.topic, name.encode())
            self.fetch(self.topic, 2, one_by_one)
        gc.collect()
        for name in ("first", "second"):
            above = [f"process {self.topic}", f"send {self.topic}", name]
            assert ancestors(spans, finished(spans, f"far {name}")) == above
        assert len(of_kind(spans, "CONSUMER")) == 2

    # --------------------------------------------------------------------------------------------------------- headers

    def received(self, **sent: Any) -> list[tuple[str, Any]]:
        """The headers of one message that is sent from a span called near."""
        topic, seen = f"{self.topic}-{uuid.uuid4().hex[:4]}", list[Any]()
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.send(topic, **sent)
            self.handle(topic, lambda message: seen.append(self.headers_of(message)))
        return list(seen[0])

    def test_callers_headers_are_copied_and_replaced(self, spans: Any) -> None:
        for shape in self.header_shapes:
            for pairs in ([], [("customer", b"7"), ("TraceParent", b"old"), ("traceparent", TRACEPARENT.encode())]):
                headers = shape(pairs)
                for _ in range(2):  # a constant, shared by all messages
                    spans.clear()
                    received = self.received(headers=headers)
                    [sender] = of_kind(spans, "PRODUCER")
                    assert named(received).count("traceparent") == 1
                    assert f"{sender.context.span_id:016x}".encode() in dict(received)["traceparent"]
                    assert dict(received).get("customer") == dict(pairs).get("customer")
                    assert ancestors(spans, sender) == ["near"]
                assert headers == shape(pairs)

    def test_headers_by_position(self, spans: Any) -> None:
        seen: list[Any] = []
        given = [("customer", b"7")]
        with installed(self.name):
            for headers in (None, given):
                with tracer.start_as_current_span("near"):
                    self.send_positional(self.topic, headers)
            self.handle(self.topic, lambda message: seen.append(self.headers_of(message)), count=2)
        assert [named(headers) for headers in seen] == [["traceparent"], ["customer", "traceparent"]]
        assert given == [("customer", b"7")]

    def test_last_of_two_headers_wins(self, spans: Any) -> None:
        last = f"00-{TRACE_ID[::-1]}-{SPAN_ID}-01"
        self.send(self.topic, headers=[("traceparent", TRACEPARENT.encode()), ("traceparent", last.encode())])
        with installed(self.name):
            self.handle(self.topic, lambda message: None)
        assert f"{finished(spans, f'process {self.topic}').context.trace_id:032x}" == TRACE_ID[::-1]

    @pytest.mark.parametrize("value", [POISON, None, b"", b"00-0-0-01"])
    @pytest.mark.parametrize("header", ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "attempt"])
    def test_bad_header_loses_no_message(self, spans: Any, no_log: Any, header: str, value: Any) -> None:
        stranger = Producer({"bootstrap.servers": self.address})
        stranger.produce(self.topic, b"x", headers=[(header, value)])
        stranger.flush()
        seen: list[Any] = []
        with installed(self.name):
            self.handle(self.topic, lambda message: seen.append(self.value_of(message)))
        assert seen == [b"x"]
        assert finished(spans, f"process {self.topic}").parent is None

    def test_bad_traceparent_gives_one_debug_line(self, spans: Any, caplog: pytest.LogCaptureFixture) -> None:
        self.send(self.topic, headers=[("traceparent", POISON)])
        with installed(self.name), caplog.at_level(logging.DEBUG, "tracefill"):
            caplog.clear()
            self.handle(self.topic, lambda message: work())
        lines = [record for record in caplog.records if record.name.startswith("tracefill")]
        assert [record.levelname for record in lines] == ["DEBUG"]
        assert "traceparent" in lines[0].getMessage()

    @pytest.mark.parametrize("formats", [("tracecontext",), ("b3",), ("tracecontext", "b3"), ("b3multi",)])
    def test_formats_are_a_choice(self, spans: Any, formats: tuple[str, ...]) -> None:
        with written_as(*formats):
            received = self.received()
        written = {name for name in named(received) if name in ("traceparent", "b3", "x-b3-traceid")}
        assert written == {{"tracecontext": "traceparent", "b3multi": "x-b3-traceid"}.get(f, f) for f in formats}
        [processed] = of_kind(spans, "CONSUMER")
        assert ancestors(spans, processed)[-1] == "near"

    def test_trace_state_of_another_trace_goes(self) -> None:
        headers = self.received(headers=[("traceparent", TRACEPARENT.encode()), ("tracestate", b"a=b")])
        assert named(headers) == ["traceparent"]

    def test_baggage_comes_along(self) -> None:
        seen: list[Any] = []
        with installed(self.name):
            with scope(baggage.set_baggage("customer", "blue one")):
                self.send(self.topic)
            self.handle(self.topic, lambda message: seen.append(baggage.get_baggage("customer")))
        assert seen == ["blue one"]

    def test_business_tags_come_along(self, spans: Any) -> None:
        tags.declare(
            tags.Tag("tenant_id", header="x-tenant-id"),
            tags.Tag("order_no", baggage=True),
            tags.Tag("biz_id", header="x-biz-id"),
            tags.Tag("secret", header="x-secret", baggage=True, hosts=["*.shop.example"]),
        )
        seen: list[Any] = []
        given = [("x-biz-id", b"theirs"), ("X-Tenant-ID", b"blue")]
        try:
            with installed(self.name):
                with tags.scope(tenant_id="blue", order_no="7", biz_id="ours", secret="hidden"):
                    self.send(self.topic, headers=given)
                self.handle(self.topic, lambda message: seen.append((tags.current(), self.headers_of(message))))
        finally:
            tags.forget()
        [(current, headers)] = seen
        assert current == {"tenant_id": "blue", "order_no": "7", "biz_id": "theirs"}
        assert dict(headers)["baggage"] == b"order_no=7"
        assert dict(headers)["x-biz-id"] == b"theirs"
        assert named(headers).count("x-tenant-id") == 1
        assert "x-secret" not in named(headers)
        assert finished(spans, f"process {self.topic}").attributes["tenant_id"] == "blue"

    # ----------------------------------------------------------------------------------------- retries and dead letters

    @pytest.mark.parametrize("copied", [True, False], ids=["original headers", "fresh headers"])
    def test_every_attempt_is_a_hop(self, spans: Any, copied: bool) -> None:
        retry, dead = f"{self.topic}.retry", f"{self.topic}.dlq"

        def to(topic: str) -> Callable[[Any], None]:
            return lambda message: self.send_inside(
                topic, self.value_of(message), self.headers_of(message) if copied else None
            )

        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.send(self.topic)
            self.handle(self.topic, to(retry))
            self.handle(retry, to(f"{retry}-2"))
            self.handle(f"{retry}-2", to(dead))
            self.handle(dead, lambda message: work())
        places = [self.topic, retry, f"{retry}-2", dead]
        hops = [name for place in reversed(places) for name in (f"process {place}", f"send {place}")]
        assert ancestors(spans, finished(spans, "far")) == [*hops, "near"]
        processed = [finished(spans, f"process {place}").attributes for place in places]
        assert [said.get("tracefill.message.attempt") for said in processed] == [None, 2, 3, 3]
        originals = [said.get("tracefill.message.original_destination") for said in processed]
        assert originals == [None, self.topic, self.topic, self.topic]

    # ----------------------------------------------------------------------------------------------------------- verbs

    def test_inject_replaces(self) -> None:
        position = NonRecordingSpan(SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), False, TraceFlags(1)))
        with scope(trace.set_span_in_context(position)):
            given = [("traceparent", b"old"), ("TraceParent", b"older"), ("customer", b"7")]
            assert self.integration.inject(given) is given
            assert given == [("customer", b"7"), ("traceparent", TRACEPARENT.encode())]
            assert self.integration.inject() == [("traceparent", TRACEPARENT.encode())]

    def test_verbs_without_install(self, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            self.send(self.topic, headers=self.integration.inject())
            self.send(self.topic, headers=self.integration.inject())
        self.consume(self.topic, lambda message: work())
        assert ancestors(spans, finished(spans, "far")) == [f"process {self.topic}", "near"]
        spans.clear()

        def by_hand(messages: list[Any]) -> None:
            for message in messages:
                assert trace.get_current_span(self.integration.extract(message)).get_span_context().is_valid
                with self.integration.process(message) as span:
                    assert trace.get_current_span() is span
            with self.integration.batch(messages) as span:
                work("far of both")
                assert len(span.links) == 2

        self.fetch(self.topic, 2, by_hand)
        assert ancestors(spans, finished(spans, "far of both")) == [f"process {self.topic}"]
        assert len(of_kind(spans, "CONSUMER")) == 3

    def test_process_of_what_is_handled_already_is_no_second_span(self, spans: Any) -> None:
        def handler(message: Any) -> None:
            current = trace.get_current_span()
            with self.integration.process(message) as span:
                assert span is current

        self.send(self.topic)
        with installed(self.name):
            self.handle(self.topic, handler)
        gc.collect()
        finished(spans, f"process {self.topic}")

    # --------------------------------------------------------------------------------------------------------- contrib

    @pytest.mark.parametrize("order", ["contrib first", "tracefill first"])
    def test_with_contrib_one_span_for_each_crossing_and_it_is_contribs(
        self, spans: Any, no_log: Any, order: str
    ) -> None:
        with contextlib.ExitStack() as stack:
            if order == "tracefill first":
                stack.enter_context(installed(self.name))
            instrumentor = self.instrumentor()
            instrumentor.instrument()
            stack.callback(instrumentor.uninstrument)
            if order == "contrib first":
                stack.enter_context(installed(self.name))
            self.make_producer()
            seen: list[Any] = []

            def handler(message: Any) -> None:
                seen.append(self.headers_of(message))
                work()

            headers = [("customer", b"7")]
            with tracer.start_as_current_span("near"):
                self.send(self.topic, headers=headers)
            self.handle(self.topic, handler)
        assert headers == [("customer", b"7")]
        assert named(seen[0]) == ["customer", "traceparent"]
        sent, processed = (name.format(self.topic) for name in self.contrib_names)
        assert ancestors(spans, finished(spans, "far")) == [processed, sent, "near"]
        crossings = of_kind(spans, "PRODUCER") + of_kind(spans, "CONSUMER")
        scopes = {span.instrumentation_scope.name for span in crossings}
        assert scopes == {self.contrib_scope}, scopes
        assert len(crossings) == 2
