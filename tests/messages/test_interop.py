"""Go, Java and Python on one topic of a real Kafka: one trace, in each of the formats that they have in common."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import ancestors, finished, tracer
from tests.messages.kafka_contract import Clients, installed, of_kind, written_as
from tests.messages.test_aiokafka import Aiokafka
from tests.messages.test_confluent import Confluent
from tests.messages.test_kafka import KafkaPython
from tracefill.context import scope

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
# Without the flag of random ids, which new traces of OpenTelemetry's SDK have: Micrometer 1.5, the peer in Java, takes no
# traceparent that has it, whoever sent it.
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Together(Clients):
    @pytest.mark.parametrize("format", ["tracecontext", "b3"])
    def test_all_of_them_are_one_trace(self, spans: Any, go_peer: Any, java_peer: Any, format: str) -> None:
        """Python sends; Go and Java read it and send on; Python handles all three and sends on; Go and Java read that too."""
        last = f"{self.topic}-last"
        with written_as(format), installed(self.name), scope(tracefill.extract({"traceparent": TRACEPARENT})):
            with tracer.start_as_current_span("near"):
                self.send(self.topic)
            for peer in (go_peer, java_peer):
                [record] = peer.consume(self.address, self.topic, 1)
                self.check(record[format], finished(spans, f"send {self.topic}"))
                peer.produce(self.address, self.topic, only(record, format), format)
            handled: list[Any] = []
            self.handle(self.topic, lambda message: handled.append(trace.get_current_span()), count=3)
            self.handle(self.topic, lambda message: self.send_inside(last, b"on", self.headers_of(message)))
            for peer in (go_peer, java_peer):
                [record] = peer.consume(self.address, last, 1)
                self.check(record[format], finished(spans, f"send {last}"))
        assert len(handled) == 3
        for span in handled:
            assert ancestors(spans, span) == [f"send {self.topic}", "near"]

    @pytest.mark.parametrize("format", ["tracecontext", "b3", "b3multi"])
    def test_what_they_send_is_continued(self, spans: Any, go_peer: Any, java_peer: Any, format: str) -> None:
        for peer in (go_peer, java_peer):
            peer.produce(self.address, self.topic, {"traceparent": TRACEPARENT}, format)
        with installed(self.name):
            self.handle(self.topic, lambda message: None, count=2)
        handled = of_kind(spans, "CONSUMER")
        assert [f"{span.context.trace_id:032x} {span.parent.span_id:016x}" for span in handled] == [
            f"{TRACE_ID} {SPAN_ID}"
        ] * 2

    def check(self, position: dict[str, Any], sender: Any) -> None:
        assert position["trace_id"] == f"{sender.context.trace_id:032x}"
        assert position["span_id"] == f"{sender.context.span_id:016x}"
        assert position["sampled"] is True


def only(record: dict[str, Any], format: str) -> dict[str, str]:
    """What the peer has read, for it to send on."""
    if format == "b3":
        return {"b3": record["b3"]["b3"]}
    return {"traceparent": dict(record["headers"])["traceparent"]}


class TestKafkaPython(KafkaPython, Together):
    pass


class TestConfluent(Confluent, Together):
    pass


class TestAiokafka(Aiokafka, Together):
    pass
