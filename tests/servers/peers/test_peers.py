"""What the peers read is what they are given, by Kafka and by HTTP, in each of their formats."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

if TYPE_CHECKING:
    from tests.servers.kafka import Kafka
    from tests.servers.peers import Peer

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
WRITTEN = {
    "tracecontext": {"traceparent": TRACEPARENT},
    "b3": {"b3": f"{TRACE_ID}-{SPAN_ID}-1"},
    "b3multi": {"x-b3-traceid": TRACE_ID, "x-b3-spanid": SPAN_ID, "x-b3-sampled": "1"},
}


@pytest.fixture(params=["go_peer", "java_peer"])
def peer(request: pytest.FixtureRequest) -> Peer:
    peer: Peer = request.getfixturevalue(request.param)
    return peer


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.mark.parametrize("format", WRITTEN)
def test_a_record_holds_the_position_in_the_format_that_was_asked_for(
    peer: Peer, kafka: Kafka, topic: str, format: str
) -> None:
    peer.produce(kafka.address, topic, {"traceparent": TRACEPARENT}, format)
    [record] = peer.consume(kafka.address, topic, 1)
    assert WRITTEN[format].items() <= lower(dict(record["headers"])).items()
    read = record["tracecontext" if format == "tracecontext" else "b3"]
    assert (read["trace_id"], read["span_id"], read["sampled"]) == (TRACE_ID, SPAN_ID, True)


def test_what_somebody_else_wrote_is_read_record_by_record(peer: Peer, kafka: Kafka, topic: str) -> None:
    b3 = f"{TRACE_ID}-{SPAN_ID}"
    with KafkaProducer(bootstrap_servers=kafka.address) as producer:
        for name, value in [("b3", f"{b3}-d"), ("b3", b3), ("b3", f"{b3}-0"), ("traceparent", "not valid")]:
            producer.send(topic, b"", headers=[(name, value.encode())])
    debug, defer, deny, invalid = peer.consume(kafka.address, topic, 4)
    assert [record["b3"]["b3"] for record in (debug, defer, deny)] == [f"{b3}-d", b3, f"{b3}-0"]
    assert (invalid["tracecontext"], invalid["b3"]) == (None, None)


def test_go_sends_the_trace_state_and_the_baggage_of_others_on(go_peer: Peer, kafka: Kafka, topic: str) -> None:
    given = {"traceparent": TRACEPARENT, "tracestate": "vendor=value", "baggage": "tenant=blue%20one"}
    go_peer.produce(kafka.address, topic, given)
    [record] = go_peer.consume(kafka.address, topic, 1)
    assert dict(record["headers"]) == given
    assert record["tracecontext"]["trace_state"] == "vendor=value"
    assert record["baggage"] == {"tenant": "blue one"}


@pytest.mark.parametrize("format", WRITTEN)
def test_a_request_carries_the_position(peer: Peer, headers_server: str, format: str) -> None:
    answer = peer.get(headers_server, {"b3": f"{TRACE_ID}-{SPAN_ID}-1"}, format)
    assert answer["status"] == 200
    assert WRITTEN[format].items() <= lower(json.loads(answer["body"])).items()


def test_a_peer_that_fails_says_why(peer: Peer) -> None:
    with pytest.raises(RuntimeError, match="expected produce, consume or get with its arguments"):
        peer._run("no such verb")


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class HeadersBack(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(self.headers)).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def headers_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), HeadersBack) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
