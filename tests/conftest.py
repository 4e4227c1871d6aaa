"""What every test may ask for: the real servers, the spans it made, and a log that stays quiet."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests import servers

if TYPE_CHECKING:
    from tests.servers.jaeger import Jaeger
    from tests.servers.kafka import Kafka
    from tests.servers.mariadb import MariaDB
    from tests.servers.nginx import Nginx
    from tests.servers.peers import Peer
    from tests.servers.postgres import Postgres
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.redis import Redis

# Set by CI: there a server that cannot be started is a failure, not a reason to test less.
MUST_HAVE_ALL = os.environ.get("TRACEFILL_REQUIRE_SERVERS") == "1"

_not_started: dict[str, str] = {}
_exporter = InMemorySpanExporter()


def pytest_configure() -> None:
    # OpenTelemetry takes one provider a process, and code under test may ask for a tracer before any fixture runs.
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_started:
        left_out = "; ".join(f"{name} ({reason})" for name, reason in _not_started.items())
        terminalreporter.write_line(f"not started here: {left_out}", yellow=True)


@pytest.fixture(autouse=True)
def logging_is_on() -> None:
    """Workers and servers that a test runs in this process set up logging for all of it, and switch loggers off that are there."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    logging.getLogger("tracefill").propagate = True


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A Kafka broker: `.address` ("host:port"), `.stop()`, `.start()` and `.restart()`, which keep its data."""
    yield from _running("kafka")


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ broker: `.url` ("amqp://..."), `.stop()`, `.start()` and `.restart()`."""
    yield from _running("rabbitmq")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server: `.url`, and `.host`, `.port`, `.username`, `.password`, `.database`."""
    yield from _running("postgres")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server: `.url`, and `.host`, `.port`, `.username`, `.password`, `.database`."""
    yield from _running("mariadb")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server: `.url`, `.host`, `.port`."""
    yield from _running("redis")


@pytest.fixture(scope="session")
def nginx() -> Iterator[Nginx]:
    """An nginx: `.serve(directives of a server block, directives of the http block)` returns its URL."""
    yield from _running("nginx")


@pytest.fixture(scope="session")
def jaeger() -> Iterator[Jaeger]:
    """A Jaeger: `.url` (query), `.otlp`, `.sampling`, `.strategies` (a file it reads again), `.trace(trace_id)`."""
    yield from _running("jaeger")


@pytest.fixture(scope="session")
def go_peer() -> Iterator[Peer]:
    """Programs of otel-go: `.produce(...)`, `.consume(...)`, `.get(...)`."""
    yield from _running("peers.go")


@pytest.fixture(scope="session")
def java_peer() -> Iterator[Peer]:
    """Programs of Brave: `.produce(...)`, `.consume(...)`, `.get(...)`."""
    yield from _running("peers.java")


def _running(name: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(servers.running(name))
        except (servers.NotHere, servers.DidNotStart) as error:
            _leave_out(name, str(error))
        yield server


def _leave_out(name: str, reason: str) -> None:
    _not_started[name] = reason.splitlines()[-1]
    if MUST_HAVE_ALL:
        pytest.fail(f"{name} must run here, but: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that end from here on, by the process's one TracerProvider: `spans.get_finished_spans()`."""
    _exporter.clear()
    return _exporter


@pytest.fixture
def no_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Fails the test when OpenTelemetry or tracefill logged a warning or worse that it did not expect.

    A test that expects one looks at `no_log.records` and then calls `no_log.clear()`.
    """
    yield caplog
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    left = [record for record in records if record.levelno >= logging.WARNING and _is_watched(record.name)]
    assert not left, "\n".join(f"{record.levelname} {record.name}: {record.getMessage()}" for record in left)


def _is_watched(logger: str) -> bool:
    return logger.split(".")[0] in ("opentelemetry", "tracefill")
