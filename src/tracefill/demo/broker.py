"""python -m tracefill.demo.broker: the mock cluster built into librdkafka, as a process of its own.

Prints its address, and serves until its standard input ends.
"""

from __future__ import annotations

import sys

from confluent_kafka import Producer


def main() -> None:
    cluster = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = cluster.list_topics(timeout=10).brokers
    broker = next(iter(brokers.values()))
    print(f"ready {broker.host}:{broker.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
