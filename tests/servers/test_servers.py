"""Each server of the tests really answers, and what the fixtures promise of it holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import psycopg
import psycopg.errors
import pymysql
import pytest
import redis
from kafka import KafkaConsumer, KafkaProducer
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests import servers
from tests.servers import __main__ as commands
from tests.servers import builds

if TYPE_CHECKING:
    from tests.servers.jaeger import Jaeger
    from tests.servers.kafka import Kafka
    from tests.servers.mariadb import MariaDB
    from tests.servers.nginx import Nginx
    from tests.servers.postgres import Postgres
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.redis import Redis

PATIENCE_S = 30


def test_kafka_gives_back_a_record_with_its_headers(kafka: Kafka) -> None:
    produce(kafka, "records", b"value", [("traceparent", b"00-1-2-01")])
    [record] = consume(kafka, "records")
    assert (record.value, list(record.headers)) == (b"value", [("traceparent", b"00-1-2-01")])


def test_kafka_keeps_its_data_and_its_address_over_a_restart(kafka: Kafka) -> None:
    produce(kafka, "kept", b"written before", [])
    address = kafka.address
    kafka.restart()
    assert kafka.address == address
    produce(kafka, "kept", b"written after", [])
    assert [record.value for record in consume(kafka, "kept", count=2)] == [b"written before", b"written after"]


def produce(kafka: Kafka, topic: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    with KafkaProducer(bootstrap_servers=kafka.address) as producer:
        producer.send(topic, value, headers=headers).get(PATIENCE_S)


def consume(kafka: Kafka, topic: str, count: int = 1) -> list[Any]:
    with KafkaConsumer(
        topic, bootstrap_servers=kafka.address, auto_offset_reset="earliest", consumer_timeout_ms=PATIENCE_S * 1000
    ) as consumer:
        return [record for _, record in zip(range(count), consumer, strict=False)]


def test_rabbitmq_gives_back_a_message_with_its_headers(rabbitmq: RabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        properties = pika.BasicProperties(headers={"traceparent": "00-1-2-01"})
        channel.basic_publish("", queue, b"value", properties)
        _, properties, body = channel.basic_get(queue, auto_ack=True)
    assert (body, properties.headers) == (b"value", {"traceparent": "00-1-2-01"})


def test_postgres_answers_and_stops_while_a_client_is_connected(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        if postgres.ours:
            postgres.restart()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")


def test_mariadb_answers_in_the_database_of_its_url(mariadb: MariaDB) -> None:
    with (
        pymysql.connect(
            host=mariadb.host,
            port=mariadb.port,
            user=mariadb.username,
            password=mariadb.password,
            database=mariadb.database,
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1, database()")
        assert cursor.fetchone() == (1, mariadb.database)


def test_redis_answers_a_ping(redis_server: Redis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.ping() is True


def test_nginx_serves_the_directives_that_a_test_gives_it(nginx: Nginx) -> None:
    span_id = 'map $request_id $span { "~^(?<first>.{16})" $first; }'
    url = nginx.serve('location / { return 200 "00-$request_id-$span-01"; }', http=span_id)
    version, trace_id, parent_id, flags = get(url).split("-")
    assert (version, len(trace_id), parent_id, flags) == ("00", 32, trace_id[:16], "01")
    assert get(nginx.serve('location / { return 200 "another"; }')) == "another"


def test_nginx_says_what_is_wrong_with_a_configuration(nginx: Nginx) -> None:
    with pytest.raises(servers.DidNotStart, match='unknown directive "no_such_directive"'):
        nginx.serve("no_such_directive on;")


def test_jaeger_gives_back_a_span_that_it_took_by_otlp(jaeger: Jaeger) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(jaeger.otlp)))
    with provider.get_tracer("test").start_as_current_span("stored") as span:
        trace_id = f"{span.get_span_context().trace_id:032x}"
    provider.shutdown()
    assert [span["operationName"] for span in eventually(lambda: jaeger.trace(trace_id))["spans"]] == ["stored"]
    assert jaeger.trace("f" * 32) is None


def test_jaeger_tells_services_the_strategies_of_its_file(jaeger: Jaeger) -> None:
    before = jaeger.strategies.read_text()
    assert strategy(jaeger)["probabilisticSampling"] == {"samplingRate": 1}
    try:
        jaeger.strategies.write_text(json.dumps({"default_strategy": {"type": "probabilistic", "param": 0.25}}))
        eventually(lambda: strategy(jaeger)["probabilisticSampling"] == {"samplingRate": 0.25})
    finally:
        jaeger.strategies.write_text(before)
        eventually(lambda: strategy(jaeger)["probabilisticSampling"] == {"samplingRate": 1})


def strategy(jaeger: Jaeger) -> Any:
    return json.loads(get(f"{jaeger.sampling}?service=any"))


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return str(response.read(), "utf-8")


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("name", "variable", "address", "url"),
    [
        ("kafka", "TRACEFILL_KAFKA", "broker.test:9092", "kafka://broker.test:9092"),
        ("rabbitmq", "TRACEFILL_RABBITMQ", "amqp://me:se%40cret@mq.test/v", "amqp://me:se%40cret@mq.test/v"),
        ("postgres", "TRACEFILL_POSTGRES", "db.test:5432", "postgresql://db.test:5432"),
        ("mariadb", "TRACEFILL_MYSQL", "mysql://root@db.test:3306/shop", "mysql://root@db.test:3306/shop"),
        ("redis", "TRACEFILL_REDIS", "cache.test:6379", "redis://cache.test:6379"),
        ("jaeger", "TRACEFILL_JAEGER", "http://jaeger.test:16686", "http://jaeger.test:16686"),
    ],
)
def test_an_address_in_the_environment_wins_over_starting_a_server(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, address: str, url: str
) -> None:
    monkeypatch.setattr(servers, "program", lambda name: None)
    monkeypatch.setenv(variable, address)
    assert servers.available(name) is None
    with servers.running(name) as server:
        assert server.url == url
        server.stop()
        with pytest.raises(servers.NotHere):
            server.restart()


def test_a_url_gives_its_parts_unquoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEFILL_POSTGRES", "postgresql://me:se%40cret@db.test:5433/shop")
    with servers.running("postgres") as server:
        parts = (server.address, server.host, server.port, server.username, server.password, server.database)
    assert parts == ("db.test:5433", "db.test", 5433, "me", "se@cret", "shop")


def test_a_server_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FOLDERS_OF_PROGRAMS", [])
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TRACEFILL_RABBITMQ", raising=False)
    with pytest.raises(servers.NotHere, match="not installed: rabbitmq-server, epmd"), servers.running("rabbitmq"):
        pass


class Silent(servers.Server):
    name = "silent"

    def command(self) -> list[str | Path]:
        return ["sh", "-c", "echo 'cannot go on'; exit 3"]

    def answers(self) -> bool:
        return False


def test_the_error_of_a_server_that_does_not_start_ends_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(servers.DidNotStart, match=r"silent did not start.*\ncannot go on$"):
        servers.started(Silent(tmp_path))


def test_a_tool_that_fails_while_a_server_is_prepared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(servers.DidNotStart, match=r"\nno room$"):
        Silent(tmp_path).run("sh", "-c", "echo 'no room'; exit 1")


class Sleeper(Silent):
    def command(self) -> list[str | Path]:
        return ["sleep", "600"]

    def answers(self) -> bool:
        return True


def test_a_server_goes_when_the_tests_are_killed(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys; from tests.servers.test_servers import Sleeper;"
        "sleeper = Sleeper(pathlib.Path(sys.argv[1])); sleeper.start();"
        "print(sleeper._processes[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    eventually(lambda: not is_running(int(killed.stdout)))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("before", ["#!/bin/sh\nexit 0\n", None])
def test_no_package_starts_a_service_and_the_policy_of_before_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(commands, "POLICY", policy)
    if before:
        policy.write_text(before)
    with commands.no_services_started():
        assert subprocess.run([policy, "redis-server", "start"], check=False).returncode == 101
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({policy.name: before} if before else {})


def test_what_was_not_finished_is_not_taken_for_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builds, "CACHE", tmp_path)
    target = tmp_path / "built"
    with pytest.raises(FileNotFoundError, match="not installed: no-such-compiler"):
        builds.build(target, lambda folder: builds.run("no-such-compiler", cwd=folder))
    assert list(tmp_path.iterdir()) == []
    builds.build(target, lambda folder: (folder / "program").touch())
    assert [path.name for path in target.iterdir()] == ["program"]


def in_a_run_of_its_own(tmp_path: Path, test: str, *options: str, **environment: str) -> str:
    """What pytest prints for one test, under the conftest of the tests."""
    (tmp_path / "test_it.py").write_text(test)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "--rootdir",
        str(tmp_path),
        *options,
        str(tmp_path),
    ]
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # it starts sooner
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return run.stdout


ASKS_FOR_REDIS = "def test_it(redis_server): pass"


def test_what_cannot_be_started_is_skipped_by_name_and_listed(tmp_path: Path) -> None:
    printed = in_a_run_of_its_own(tmp_path, ASKS_FOR_REDIS, PATH="", TRACEFILL_REDIS="", TRACEFILL_REQUIRE_SERVERS="")
    assert "not started here: redis (not installed: redis-server)" in printed
    assert "1 skipped" in printed


def test_what_cannot_be_started_fails_where_all_servers_are_required(tmp_path: Path) -> None:
    printed = in_a_run_of_its_own(tmp_path, ASKS_FOR_REDIS, PATH="", TRACEFILL_REDIS="", TRACEFILL_REQUIRE_SERVERS="1")
    assert "redis must run here, but: not installed: redis-server" in printed
    assert "1 error" in printed


def test_an_interrupted_run_stops_its_servers_and_clears_their_folders_away(tmp_path: Path) -> None:
    interrupted = """
import os, signal

def test_it(redis_server):
    print(f"left={redis_server.folder} {redis_server._processes[0].pid}=")
    os.kill(os.getpid(), signal.SIGINT)
"""
    printed = in_a_run_of_its_own(tmp_path, interrupted, "-s")
    assert "KeyboardInterrupt" in printed
    folder, pid = printed.split("=")[1].split()
    assert not Path(folder).exists()
    assert not is_running(int(pid))


def test_spans_begins_empty_and_holds_what_ended(tmp_path: Path) -> None:
    twice = """
import pytest
from opentelemetry import trace

@pytest.mark.parametrize("name", ["first", "second"])
def test_it(spans, name):
    with trace.get_tracer("test").start_as_current_span(name):
        pass
    assert [span.name for span in spans.get_finished_spans()] == [name]
"""
    assert "2 passed" in in_a_run_of_its_own(tmp_path, twice)


@pytest.mark.parametrize(
    ("logged", "outcome"),
    [
        ("logging.getLogger('tracefill.codec').warning('unexpected')", "1 error"),
        ("logging.getLogger('opentelemetry.context').error('unexpected')", "1 error"),
        ("logging.getLogger('tracefill').warning('expected'); no_log.clear()", "1 passed"),
        ("logging.getLogger('tracefill').info('said'); logging.getLogger('tracefillx').error('said')", "1 passed"),
    ],
)
def test_no_log_fails_a_test_that_leaves_a_warning_in_the_log(tmp_path: Path, logged: str, outcome: str) -> None:
    test = f"import logging\ndef test_it(no_log):\n    logging.getLogger().setLevel(0); {logged}"
    assert outcome in in_a_run_of_its_own(tmp_path, test)
