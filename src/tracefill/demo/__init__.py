"""`tracefill demo`: a small shop of real services, run twice on the same traffic: stock OpenTelemetry, then tracefill.

| module         | what it holds |
|----------------|---------------|
| `shop.py`      | the services: ordinary code that never names tracefill |
| `service.py`   | one process of the shop, and its end |
| `telemetry.py` | the telemetry that each process is started with, the workers of its pools too |
| `processes.py` | processes started in order, waited for, stopped, none left behind |
| `system.py`    | the shop in one mode, out of these |
| `broker.py`    | the Kafka of a run |
| `servers.py`   | `nginx.py` and `rabbitmq.py`, if they are installed; `keeper.py` ends those that know nothing of the demo |
| `traffic.py`   | the callers: two storefronts (one of them speaks B3), and a guest with bad headers |
| `verdict.py`   | both runs, and what the exported spans say afterwards |
| `tree.py`      | one trace as a tree |
| `jaeger.py`    | the same spans sent to a Jaeger |
"""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]

EXAMPLE = """\
example:
  tracefill demo --orders 40

A real broker is used when TRACEFILL_KAFKA=host:port is set; else the one inside librdkafka. nginx and RabbitMQ take part
when they are on the PATH (RabbitMQ also as TRACEFILL_RABBITMQ=amqp://...). Each service writes its own OTLP JSON; --keep DIRECTORY leaves the files there, for `tracefill audit DIRECTORY/tracefill`. With --jaeger http://localhost:4318 the spans
go to that Jaeger too, and the demo says how to audit each run there.

exit codes: 0 every chain of the tracefill run is whole, and has each step of its order; 1 some are not; 2 the shop could not be started, or nobody
takes the spans at --jaeger."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "A small shop loses its chains by stock OpenTelemetry, and keeps them by tracefill."
    parser.epilog = EXAMPLE
    parser.add_argument("--orders", type=_count, default=30, metavar="N", help="orders of each caller (default 30)")
    parser.add_argument("--keep", metavar="DIRECTORY", help="keep the exported spans here")
    parser.add_argument("--jaeger", metavar="URL", help="send the spans to this Jaeger as well: its OTLP/HTTP endpoint")
    parser.add_argument(
        "--json", action="store_true", help="the two audits, and the steps of the orders, as one JSON document"
    )


def run(arguments: argparse.Namespace) -> int:
    from tracefill.demo.verdict import compare

    return compare(arguments.orders, arguments.keep, arguments.jaeger, as_json=arguments.json)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 10000, found {text!r}")
    return int(text)
