"""What kafka-python, confluent-kafka and aiokafka have in common: a message's headers, and the attributes of its spans.

Headers are lists of (name, value) pairs. A list that a program gives to its producer is copied, never changed: it may be
one constant list for all messages. Setting replaces; of several headers of one name the last is read.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tracefill import tags
from tracefill._codec import inject
from tracefill.messages.handling import Republished
from tracefill.messages.message_spans import Source, is_replaced, trace_headers

__all__ = [
    "RecordSource",
    "consumer_attributes",
    "inject_into",
    "partition_attributes",
    "process_attributes",
    "publish_attributes",
    "server_attributes",
    "with_trace",
]


def inject_into(headers: Any) -> Any:
    """The headers (a list of pairs or a dict; None: a new list) with the position of now in the place of any other."""
    if headers is None:
        headers = []
    changed = with_trace(headers)
    if changed is headers:
        return headers
    if isinstance(headers, dict):
        headers.clear()
        headers.update(changed)
    else:
        headers[:] = changed
    return headers


def with_trace(headers: Any, republished: Republished | None = None) -> Any:
    """A copy of a producer's headers that carries the position of now; the very same object where there is nothing to carry."""
    if headers is None and republished is None and not tags.declared():  # as most messages are sent
        fresh: dict[str, str] = {}
        inject(fresh)
        return [(name, value.encode()) for name, value in fresh.items()] or headers
    fresh = trace_headers(headers)
    if republished is not None:
        fresh |= republished.headers()
    if not fresh:
        return headers
    written = {name: value.encode() for name, value in fresh.items()}
    if not headers:
        return written if isinstance(headers, dict) else list(written.items())
    if isinstance(headers, dict):
        return {name: value for name, value in headers.items() if not is_replaced(name, fresh)} | written
    return [pair for pair in headers if not (pair and is_replaced(pair[0], fresh))] + list(written.items())


def publish_attributes(
    topic: str, value: Any, key: Any, partition: Any, republished: Republished | None
) -> dict[str, Any]:
    """The attributes of a PRODUCER span."""
    found: dict[str, Any] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    if isinstance(partition, int) and partition >= 0:
        found["messaging.destination.partition.id"] = str(partition)
    if (text := key_text(key)) is not None:
        found["messaging.kafka.message.key"] = text
    if value is None:
        found["messaging.kafka.message.tombstone"] = True
    if republished is not None:
        found["tracefill.message.attempt"] = republished.attempt
        found["tracefill.message.original_destination"] = republished.original
    return found


def consumer_attributes(group: str | None, client_id: str | None, bootstrap: Any) -> dict[str, Any]:
    """What all CONSUMER spans of one consumer have in common."""
    found: dict[str, Any] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
    }
    if group:
        found["messaging.consumer.group.name"] = group
    if client_id:
        found["messaging.client.id"] = client_id
    found.update(server_attributes(bootstrap))
    return found


def partition_attributes(topic: str, partition: int) -> dict[str, Any]:
    """What all CONSUMER spans of one partition have in common."""
    return {"messaging.destination.name": topic, "messaging.destination.partition.id": str(partition)}


def process_attributes(common: Mapping[str, Any], offset: int, key: Any, value: Any) -> dict[str, Any]:
    """The attributes of the CONSUMER span of one message. `common`: those of its consumer and its partition."""
    found: dict[str, Any] = {**common, "messaging.kafka.offset": offset}
    if (text := key_text(key)) is not None:
        found["messaging.kafka.message.key"] = text
    if value is None:
        found["messaging.kafka.message.tombstone"] = True
    return found


class RecordSource(Source):
    """The records of one consumer (None: of an unknown one) of kafka-python or aiokafka, which look alike."""

    __slots__ = ("_common", "_consumer", "_library", "_partitions")

    def __init__(self, library: str, consumer: Any, common: Mapping[str, Any]) -> None:
        self._library = library
        self._consumer = (lambda: None) if consumer is None else weakref.ref(consumer)
        self._common = common
        self._partitions: dict[tuple[str, int], tuple[Any, dict[str, Any]]] = {}

    def destination(self, message: Any) -> str:
        topic: str = message.topic
        return topic

    def headers(self, message: Any) -> Any:
        return message.headers

    def body(self, message: Any) -> Any:
        return message.value

    def created_ms(self, message: Any) -> float | None:
        created: float | None = message.timestamp
        return created

    def attributes(self, message: Any) -> dict[str, Any]:
        partition, common = self._partitions.get((message.topic, message.partition)) or self._partition_of(message)
        found = process_attributes(common, message.offset, message.key, message.value)
        consumer: Any = self._consumer()
        try:
            end = consumer.highwater(partition)  # as far as the client knows without asking the broker
        except Exception:  # no longer assigned to us, or no consumer any more
            end = None
        if end is not None:
            behind = end - message.offset - 1
            found["tracefill.message.lag"] = behind if behind > 0 else 0
        return found

    def _partition_of(self, message: Any) -> tuple[Any, dict[str, Any]]:
        """The library's name of the record's partition, and what all spans of its records have in common."""
        topic, number = message.topic, message.partition
        named = None if self._consumer() is None else sys.modules[self._library].TopicPartition(topic, number)
        found = self._partitions[topic, number] = named, {**self._common, **partition_attributes(topic, number)}
        return found


def key_text(key: Any) -> str | None:
    """A message's key as text; None when there is none, or it is not text."""
    if isinstance(key, bytes):
        try:
            key = key.decode()
        except UnicodeDecodeError:
            return None
    return key if isinstance(key, str) else None


def server_attributes(bootstrap: Sequence[str] | str | None) -> Mapping[str, Any]:
    """server.address and server.port of the first broker that a client was told of."""
    if isinstance(bootstrap, str):
        bootstrap = bootstrap.split(",")
    return _address(str(bootstrap[0]).strip()) if bootstrap else {}


@functools.lru_cache(64)
def _address(first: str) -> Mapping[str, Any]:
    host, _, port = first.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return {"server.address": first} if first else {}
    return {"server.address": host.strip("[]"), "server.port": int(port)}
