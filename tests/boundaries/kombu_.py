"""Async message: kombu, and what rides on it."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.asynchronous import hub as hubs
from kombu.common import Broadcast, collect_replies, drain_consumer, eventloop, itermessages, send_reply
from kombu.mixins import ConsumerMixin, ConsumerProducerMixin
from kombu.pools import connections, producers
from kombu.simple import SimpleQueue
from opentelemetry import trace

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.celery:CeleryInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]
DEADLINE_S = 30

# A program that nobody instruments.
STRANGER = """
import sys
import pika

host, _, port = sys.argv[1].partition(":")
channel = pika.BlockingConnection(pika.ConnectionParameters(host, int(port))).channel()
for name in ("traceparent", "tracestate", "baggage", "b3"):
    for value in (b"\\xff\\xfe", 7, None, ["00"], {"a": b"b"}):
        channel.basic_publish(
            "", sys.argv[2], b'"-"', pika.BasicProperties(headers={name: value}, content_type="application/json")
        )
"""
HOSTILE = 4 * 5


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BOUNDARY_"))}


def connect(b: Program) -> Any:
    return Connection(f"amqp://guest:guest@{b.address('rabbitmq')}//")


def new_queue(connection: Any, **options: Any) -> Any:
    """A bound queue, which gets what is sent to its name."""
    name = f"queue-{uuid.uuid4().hex[:12]}"
    made = Queue(name, Exchange(""), name, durable=False, **options)(connection.default_channel)
    made.declare()
    return made


def send_each(b: Program, connection: Any, to: Any, keys: str, **options: Any) -> None:
    producer = Producer(connection)
    for key in keys:
        with b.near(key):
            producer.publish(key, routing_key=to.name, **options)


def drain(connection: Any, true: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=0.2)


def handle(connection: Any, of: Any, callback: Callable[[Any, Any], Any], count: int) -> None:
    """Consumes until the callback was called so many times."""
    seen: list[Any] = []

    def counted(body: Any, message: Any) -> None:
        seen.append(body)
        callback(body, message)

    with Consumer(connection.channel(), [of], callbacks=[counted], no_ack=True):
        drain(connection, lambda: len(seen) == count)


def one_header(b: Program, message: Any) -> None:
    if [name.lower() for name in message.headers].count("traceparent") != 1:
        b.leak(f"headers: {message.headers}")


# ----------------------------------------------------------------------------------------------------------- consumers


@boundary("kombu: consumer callback", needs=("rabbitmq",))
def callback(b: Program) -> None:
    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        handle(connection, to, lambda body, message: b.far(body), 2)
        b.clean("after the callbacks")


@boundary("kombu: several callbacks, register_callback, on_message", needs=("rabbitmq",))
def callback_kinds(b: Program) -> None:
    seen: list[Any] = []

    def on_message(message: Any) -> None:
        b.far(message.payload)
        seen.append(message)
        message.ack()

    with connect(b) as connection:
        queues = [new_queue(connection) for _ in "abc"]
        first = connection.Consumer([queues[0]], callbacks=[lambda body, message: b.far(body)], no_ack=True)
        first.register_callback(lambda body, message: (b.far(body), seen.append(body)))
        second = Consumer(connection.channel(), queues[1], on_message=on_message)
        third = Consumer(connection.channel(), [queues[2]])
        third.on_message = on_message
        for key, to in zip("abc", queues, strict=True):
            send_each(b, connection, to, key)
        with first, second, third:
            drain(connection, lambda: len(seen) == 3)
        b.clean("after the callbacks")


@boundary("kombu: ConsumerMixin on a thread that was started inside of a request", needs=("rabbitmq",))
def mixin(b: Program) -> None:
    class Worker(ConsumerMixin):  # type: ignore[misc]
        left = 2

        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer(queues=[Queue(to.name, durable=False)], callbacks=[self.on_task])]

        def on_task(self, body: Any, message: Any) -> None:
            b.far(body)
            message.ack()
            self.left -= 1
            self.should_stop = not self.left

    with connect(b) as connection, connect(b) as other:
        to = new_queue(connection)
        with b.span("starts the worker"):
            thread = threading.Thread(target=Worker(other).run)
            thread.start()
        send_each(b, connection, to, "ab")
        thread.join(DEADLINE_S)


@boundary("kombu: callback raises, a supervisor drains again", needs=("rabbitmq",))
def callback_raises(b: Program) -> None:
    def on_message(body: Any, message: Any) -> None:
        b.far(body)
        message.ack()
        raise ValueError(body)

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        with Consumer(connection.channel(), [to], callbacks=[on_message], prefetch_count=1):
            for _ in "ab":
                with contextlib.suppress(ValueError):
                    connection.drain_events(timeout=DEADLINE_S)
                b.clean("in the supervisor")


@boundary("kombu: callback publishes to the next, three hops", needs=("rabbitmq",))
def callback_relays(b: Program) -> None:
    with connect(b) as connection:
        first, second, third = (new_queue(connection) for _ in range(3))
        done: list[Any] = []
        producer = Producer(connection)

        def relay_to(to: Any) -> Callable[..., None]:
            def relay(body: Any, message: Any) -> None:
                b.far("a")
                producer.publish({"order": body}, exchange="", routing_key=to.name)

            return relay

        def last(body: Any, message: Any) -> None:
            b.far("a")
            done.append(body)

        send_each(b, connection, first, "a")
        with (
            Consumer(connection.channel(), [first], callbacks=[relay_to(second)], no_ack=True),
            Consumer(connection.channel(), [second], callbacks=[relay_to(third)], no_ack=True),
            Consumer(connection.channel(), [third], callbacks=[last], no_ack=True),
        ):
            drain(connection, lambda: done)


@boundary("kombu: callback hands the message to a pool, to a queue", needs=("rabbitmq",))
def callback_to_pool(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def work(key: str) -> None:
        time.sleep(0.1)
        b.far(key)

    def run() -> None:
        while (body := jobs.get()) is not None:
            b.far(body)

    def on_message(body: Any, message: Any) -> None:
        pool.submit(work, body)
        jobs.put(body)

    worker = threading.Thread(target=run)
    worker.start()
    with ThreadPoolExecutor(2) as pool, connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "abc")
        handle(connection, to, on_message, 3)
    jobs.put(None)
    worker.join()


@boundary("kombu: connection, producer and consumer there before install()", needs=("rabbitmq",))
def opened_before(b: Program) -> None:
    seen: list[Any] = []
    ours = "tracefill" in os.environ["BOUNDARY_MODE"]
    if ours:
        import tracefill

        tracefill.uninstall()
    with connect(b) as connection:
        first, second = new_queue(connection), new_queue(connection)
        producer = Producer(connection)
        consumers = [
            Consumer(connection.channel(), [first], callbacks=[lambda body, message: (b.far(body), seen.append(body))]),
            Consumer(
                connection.channel(),
                [second],
                on_message=lambda message: (b.far(message.payload), seen.append(message)),
                no_ack=True,
            ),
        ]
        for consumer in consumers:
            consumer.consume()
        if ours:
            tracefill.install(queues=True, subprocess=True)
        for key, to in zip("ab", (first, second), strict=True):
            with b.near(key):
                producer.publish(key, routing_key=to.name)
        drain(connection, lambda: len(seen) == 2)
        b.clean("after the messages")


# ------------------------------------------------------------------------------------------------------------ fetching


@boundary("kombu: Queue.get()", needs=("rabbitmq",))
def get(b: Program) -> None:
    def work() -> None:
        for _ in "ab":
            message = to.get()
            b.far(message.payload)
            message.ack()
        if to.get() is not None:
            b.leak("a third message")
        b.clean("when the queue is empty")

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        work()
        b.clean("after work()")


@boundary("kombu: SimpleQueue", needs=("rabbitmq",))
def simple_queue(b: Program) -> None:
    def work() -> None:
        for _ in "ab":
            message = simple.get(timeout=DEADLINE_S)
            b.far(message.payload)
            message.ack()
        with contextlib.suppress(simple.Empty):
            simple.get(timeout=0.1)
        b.clean("when the queue is empty")

    with connect(b) as connection:
        simple = connection.SimpleQueue(f"queue-{uuid.uuid4().hex[:12]}", queue_opts={"durable": False})
        for key in "ab":
            with b.near(key):
                simple.put(key)
        work()
        simple.close()
        b.clean("after close")


@boundary("kombu: itermessages(), drain_consumer()", needs=("rabbitmq",))
def iterated(b: Program) -> None:
    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "abcd")
        for body, message in itermessages(connection, connection.channel(), to, limit=2, timeout=DEADLINE_S):
            b.far(body)
            message.ack()
        b.clean("after the first loop")
        left = 2
        for body, message in kombu.common.drain_consumer(connection.Consumer([to]), limit=2, timeout=DEADLINE_S):
            b.far(body)
            message.ack()
            left -= 1
            if not left:
                break
        b.clean("after the second loop")
        assert drain_consumer


@boundary("kombu: eventloop() inside of a worker's main span", needs=("rabbitmq",))
def eventloop_inside_a_span(b: Program) -> None:
    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        seen: list[Any] = []
        with (
            b.span("worker") as worker,
            Consumer(
                connection.channel(),
                [to],
                callbacks=[lambda body, message: (b.far(body), seen.append(body))],
                no_ack=True,
            ),
        ):
            for _ in eventloop(connection, timeout=1, ignore_timeouts=True):
                if trace.get_current_span() is not worker:
                    b.leak("in the worker's span")
                if len(seen) == 2:
                    break


# ----------------------------------------------------------------------------------------------- retries, dead letters


@boundary("kombu: dead-letter exchange", needs=("rabbitmq",))
def dead_letter_exchange(b: Program) -> None:
    with connect(b) as connection:
        exchange = Exchange(f"dlx-{uuid.uuid4().hex[:12]}", "fanout", durable=False)
        dead = Queue(f"dead-{uuid.uuid4().hex[:12]}", exchange, durable=False)(connection.default_channel)
        dead.declare()
        to = new_queue(connection, queue_arguments={"x-dead-letter-exchange": exchange.name})
        send_each(b, connection, to, "a")
        message = None
        while message is None:
            message = to.get()
        message.reject()
        handle(connection, dead, lambda body, message: b.far(body), 1)


def republish(b: Program, options: Callable[[Any], dict[str, Any]]) -> None:
    with connect(b) as connection:
        to = new_queue(connection)
        retry = Queue(f"{to.name}.retry", Exchange(""), f"{to.name}.retry", durable=False)(connection.default_channel)
        retry.declare()
        send_each(b, connection, to, "a", headers={"customer": 7})

        def on_message(body: Any, message: Any) -> None:
            before = dict(message.headers)
            with b.span("near-hop"):
                Producer(connection.channel()).publish(body, routing_key=retry.name, **options(message))
            if message.headers != before:
                b.leak(f"into the received headers: {message.headers}")

        def on_retry(body: Any, message: Any) -> None:
            b.far(body)
            b.far("-hop")
            one_header(b, message)

        handle(connection, to, on_message, 1)
        handle(connection, retry, on_retry, 1)


@boundary("kombu: retry: republish with headers=message.headers", needs=("rabbitmq",))
def republish_headers(b: Program) -> None:
    republish(b, lambda message: {"headers": message.headers})


@boundary("kombu: retry: republish with headers and properties", needs=("rabbitmq",))
def republish_properties(b: Program) -> None:
    republish(
        b,
        lambda message: {
            "headers": message.headers,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "correlation_id": message.properties.get("correlation_id") or "7",
        },
    )


@boundary("kombu: retry: republish with fresh headers", needs=("rabbitmq",))
def republish_fresh(b: Program) -> None:
    republish(b, lambda message: {})


# ------------------------------------------------------------------------------------------------------------------ RPC


@boundary("kombu: RPC by a reply queue (ConsumerProducerMixin)", needs=("rabbitmq",))
def rpc(b: Program) -> None:
    class Server(ConsumerProducerMixin):  # type: ignore[misc]
        left = 2

        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([Queue(to.name, durable=False)], on_message=self.on_request, prefetch_count=1)]

        def on_request(self, message: Any) -> None:
            b.far(message.payload)
            self.producer.publish(
                {"key": message.payload},
                exchange="",
                routing_key=message.properties["reply_to"],
                correlation_id=message.properties["correlation_id"],
                retry=True,
            )
            message.ack()
            self.left -= 1
            self.should_stop = not self.left

    with connect(b) as connection, connect(b) as other:
        to = new_queue(connection)
        server = threading.Thread(target=Server(other).run)
        server.start()
        replies = new_queue(connection)
        for key in "ab":
            with b.near(key):
                Producer(connection).publish(
                    key, routing_key=to.name, reply_to=replies.name, correlation_id=uuid.uuid4().hex
                )
                handle(connection, replies, lambda body, message: b.far(body["key"]), 1)
        server.join(DEADLINE_S)


@boundary("kombu: send_reply(), collect_replies()", needs=("rabbitmq",))
def replies(b: Program) -> None:
    with connect(b) as connection:
        to, answers = new_queue(connection), new_queue(connection)
        producer = Producer(connection)

        def on_request(body: Any, message: Any) -> None:
            b.far(body)
            send_reply("", message, body, producer)

        with b.near("a"):
            producer.publish("a", serializer="json", routing_key=to.name, reply_to=answers.name, correlation_id="7")
        handle(connection, to, on_request, 1)
        channel = connection.channel()
        channel.after_reply_message_received = lambda name: None
        for body in collect_replies(connection, channel, answers, limit=1, timeout=DEADLINE_S):
            b.far(body)
        b.clean("after the replies")


# -------------------------------------------------------------------------------------------------------------- sending


@boundary(
    "kombu: headers None, empty, shared, read-only, by position, compressed, retried, pooled", needs=("rabbitmq",)
)
def header_arguments(b: Program) -> None:
    shared: dict[str, Any] = {"customer": 7}
    read_only: Any = types.MappingProxyType({"customer": 7, "Traceparent": "00-00-00-00"})

    def pooled(body: str) -> None:
        with producers[connection].acquire(block=True) as acquired:
            acquired.publish(body, exchange="", routing_key=to.name, declare=[to])

    with connect(b) as connection:
        to = new_queue(connection)
        producer = Producer(connection, routing_key=to.name)
        sends: list[Callable[[str], Any]] = [
            lambda body: producer.publish(body),
            lambda body: producer.publish(body=body, headers={}),
            lambda body: producer.publish(body, headers=shared),
            lambda body: producer.publish(body, headers=shared, compression="gzip"),
            lambda body: producer.publish(body, to.name, 1, False, False, 0, None, None, "json", shared),
            lambda body: producer.publish(body, headers=read_only, retry=True, retry_policy={"max_retries": 1}),
            lambda body: Producer(connection.channel()).publish(body, exchange=Exchange(""), routing_key=to.name),
            pooled,
        ]
        keys = "abcdefgh"
        for key, send in zip(keys, sends, strict=True):
            with b.near(key):
                send(key)

        def on_message(body: Any, message: Any) -> None:
            b.far(body)
            one_header(b, message)

        handle(connection, to, on_message, len(keys))
    if shared != {"customer": 7} or read_only["Traceparent"] != "00-00-00-00":
        b.leak(f"into the caller's headers: {shared}")


@boundary("kombu: topic exchange, the transport in memory")
def in_memory(b: Program) -> None:
    exchange = Exchange(f"events-{uuid.uuid4().hex[:12]}", "topic")
    seen: list[Any] = []
    with Connection("memory://") as connection:
        to = Queue(f"queue-{uuid.uuid4().hex[:12]}", exchange, "order.*")(connection.default_channel)
        to.declare()
        producer = Producer(connection, exchange=exchange)
        for key in "ab":
            with b.near(key):
                producer.publish(key, routing_key=f"order.{key}")
        with Consumer(
            connection, [to], callbacks=[lambda body, message: (b.far(body), message.ack(), seen.append(body))]
        ):
            drain(connection, lambda: len(seen) == 2)
    b.clean("after the messages")


# --------------------------------------------------------------------------------------------------------------- Celery


@contextlib.contextmanager
def worker(app: Any) -> Iterator[None]:
    from celery.contrib.testing.worker import start_worker

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=DEADLINE_S):
        yield


@boundary("kombu: Celery over RabbitMQ with the rpc backend, no span of kombu's beside its own", needs=("rabbitmq",))
def celery(b: Program) -> None:
    from celery import Celery

    app = Celery(
        f"app{uuid.uuid4().hex[:12]}", broker=f"amqp://guest:guest@{b.address('rabbitmq')}//", backend="rpc://"
    )
    app.conf.update(task_default_queue=f"queue-{uuid.uuid4().hex[:12]}", worker_hijack_root_logger=False)

    @app.task  # type: ignore[untyped-decorator]
    def work(key: str) -> str:
        if "kombu" in trace.get_current_span().instrumentation_scope.name:  # type: ignore[attr-defined]
            b.leak("a span of kombu's")
        b.far(key)
        return key

    with worker(app):
        for key in "ab":
            with b.near(key):
                result = work.delay(key)
                result.get(timeout=DEADLINE_S)


# ----------------------------------------------------------------------------------------------------------- own roots


@boundary("kombu: hostile trace headers of strangers", expect="own root", needs=("rabbitmq",))
def hostile_headers(b: Program) -> None:
    with connect(b) as connection:
        to = new_queue(connection)
        subprocess.run(
            [sys.executable, "-c", STRANGER, b.address("rabbitmq"), to.name], env=plain_environment(), check=True
        )
        send_each(b, connection, new_queue(connection), "-")
        handle(connection, to, lambda body, message: b.far("-"), HOSTILE)


# ---------------------------------------------------------------------------------------- services as they are written


@boundary("kombu: ConsumerMixin: two queues, accept, prefetch, consume(limit)", needs=("rabbitmq",))
def mixin_of_two_queues(b: Program) -> None:
    class Worker(ConsumerMixin):  # type: ignore[misc]
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [
                consumer([Queue(one.name, durable=False)], callbacks=[self.on_one], accept=["json"], prefetch_count=1),
                consumer([Queue(two.name, durable=False)], on_message=self.on_two),
            ]

        def on_one(self, body: Any, message: Any) -> None:
            b.far(body["key"])
            message.ack()

        def on_two(self, message: Any) -> None:
            b.far(message.payload["key"])
            message.ack()

        def on_iteration(self) -> None:
            b.clean("in on_iteration")

    with connect(b) as connection, connect(b) as other:
        one, two = new_queue(connection), new_queue(connection)
        for key, to in (("a", one), ("b", two), ("c", one), ("d", two)):
            with b.near(key):
                Producer(connection).publish({"key": key}, routing_key=to.name)
        for _ in Worker(other).consume(limit=4, timeout=5):
            pass
        b.clean("after the worker")


@boundary("kombu: ConsumerProducerMixin relays to the next, on threads", needs=("rabbitmq",))
def relay_mixin(b: Program) -> None:
    class Relay(ConsumerProducerMixin):  # type: ignore[misc]
        def __init__(self, connection: Any, own: Any, to: Any) -> None:
            self.connection, self.own, self.to, self.left = connection, own, to, 2

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer(queues=[Queue(self.own.name, durable=False)], callbacks=[self.relay])]

        def relay(self, body: Any, message: Any) -> None:
            b.far(body)
            if self.to is not None:
                self.producer.publish(body, exchange="", routing_key=self.to.name, retry=True)
            message.ack()
            self.left -= 1
            self.should_stop = not self.left

    with connect(b) as connection, connect(b) as second, connect(b) as third:
        first, last = new_queue(connection), new_queue(connection)
        workers = [Relay(second, first, last), Relay(third, last, None)]
        with b.span("startup"):
            threads = [threading.Thread(target=worker.run) for worker in workers]
            for thread in threads:
                thread.start()
        send_each(b, connection, first, "ab")
        for thread in threads:
            thread.join(DEADLINE_S)


@boundary("kombu: SimpleQueue in a loop until Empty, get(block=False), SimpleBuffer", needs=("rabbitmq",))
def simple_loop(b: Program) -> None:
    def drain_all(from_: Any, **options: Any) -> None:
        while True:
            try:
                message = from_.get(**options)
            except queue.Empty:
                b.clean("when it is empty")
                break
            b.far(message.payload)
            message.ack()

    with connect(b) as connection:
        name = f"queue-{uuid.uuid4().hex[:12]}"
        with connection.SimpleQueue(name, serializer="json", queue_opts={"durable": False}) as simple:
            for key in "ab":
                with b.near(key):
                    simple.put(key)
            drain_all(simple, block=True, timeout=0.3)
            with b.near("c"):
                simple.put("c", headers={"v": 1}, compression="zlib")
            time.sleep(0.1)
            drain_all(simple, block=False) if not simple.buffer else drain_all(simple, timeout=0.2)
        b.clean("after SimpleQueue")
        with contextlib.closing(SimpleQueue(connection, f"{name}-2", queue_opts={"durable": False})) as simple:
            with b.near("d"):
                simple.put("d")
            got = simple.get(timeout=5)
            b.far(got.payload)
            got.ack()
        b.clean("after the second")
        with connection.SimpleBuffer(f"{name}-3") as simple:
            with b.near("e"):
                simple.put("e")
            b.far(simple.get(timeout=5).payload)
        b.clean("after the buffer")


@boundary("kombu: connection.Consumer, connection.Producer, pools, ensure()", needs=("rabbitmq",))
def by_connection(b: Program) -> None:
    with connect(b) as connection:
        exchange = Exchange(f"x-{uuid.uuid4().hex[:12]}", "topic", durable=False, auto_delete=True)
        to = Queue(f"queue-{uuid.uuid4().hex[:12]}", exchange, routing_key="order.#", durable=False)
        with connection.Producer(serializer="json") as producer, b.near("a"):
            producer.publish("a", exchange=exchange, routing_key="order.a", declare=[to])
        with b.near("b"), connections[connection].acquire(block=True) as pooled:
            pooled.Producer(exchange=exchange).publish("b", routing_key="order.b")
        with b.near("c"), producers[connection].acquire(block=True) as pooled:
            safe = connection.ensure(pooled, pooled.publish, errback=print, max_retries=3)
            safe("c", exchange=exchange, routing_key="order.c", declare=[exchange])
        with b.near("d"):
            Producer(connection.channel(), exchange, "order.d", auto_declare=True).publish({"key": "d"})
        seen: list[Any] = []

        def on_message(body: Any, message: Any) -> None:
            b.far(body["key"] if isinstance(body, dict) else body)
            message.ack()
            seen.append(body)

        with connection.Consumer([to], callbacks=[on_message]):
            drain(connection, lambda: len(seen) == 4)
        b.clean("after the consumer")


@boundary("kombu: Consumer subclass that overrides receive()", needs=("rabbitmq",))
def consumer_subclass(b: Program) -> None:
    seen: list[Any] = []

    class Receiving(Consumer):  # type: ignore[misc]
        def receive(self, body: Any, message: Any) -> None:
            b.far(body)
            message.ack()
            seen.append(body)

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        with Receiving(connection.channel(), [to]):
            drain(connection, lambda: len(seen) == 2)
        b.clean("after the consumer")


@boundary("kombu: Consumer subclass with a receive() that calls super()", needs=("rabbitmq",))
def consumer_subclass_super(b: Program) -> None:
    seen: list[Any] = []

    class Receiving(Consumer):  # type: ignore[misc]
        def receive(self, body: Any, message: Any) -> None:
            b.far(body)
            super().receive(body, message)
            b.far(body)

    def on_message(body: Any, message: Any) -> None:
        b.far(body)
        message.ack()
        seen.append(body)

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        with Receiving(connection.channel(), [to], callbacks=[on_message]):
            drain(connection, lambda: len(seen) == 2)
        b.clean("after the consumer")


@boundary("kombu: queue.consume(callback=...) without a Consumer", needs=("rabbitmq",))
def raw_queue_consume(b: Program) -> None:
    seen: list[Any] = []

    def on_message(message: Any) -> None:
        b.far(str(message.body))
        seen.append(message)

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        bound = to(connection.channel())
        bound.consume(consumer_tag="1", callback=on_message, no_ack=True)
        drain(connection, lambda: len(seen) == 2)
        b.clean("after")


@boundary("kombu: events to everybody (Broadcast, fanout)", needs=("rabbitmq",))
def broadcast(b: Program) -> None:
    name = f"x-{uuid.uuid4().hex[:12]}"
    seen: list[Any] = []

    def on_event(body: Any, message: Any) -> None:
        b.far(body)
        seen.append(body)

    with connect(b) as connection, connect(b) as second:
        consumers = [
            Consumer(
                of.channel(),
                [Broadcast(exchange=Exchange(name, "fanout", durable=False))],
                callbacks=[on_event],
                no_ack=True,
            )
            for of in (connection, second)
        ]
        with contextlib.ExitStack() as stack:
            for consumer in consumers:
                stack.enter_context(consumer)
            for key in "ab":
                with b.near(key):
                    Producer(connection, Exchange(name, "fanout", durable=False)).publish(key)
            drain(connection, lambda: len(seen) >= 2)
            drain(second, lambda: len(seen) == 4)


@boundary("kombu: serializers, compression, a decode error handled by on_decode_error", needs=("rabbitmq",))
def serializers(b: Program) -> None:
    bad: list[Any] = []
    seen: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        b.far(body["key"])
        message.ack()
        seen.append(body)

    def on_decode_error(message: Any, error: Exception) -> None:
        bad.append(error)
        message.ack()

    with connect(b) as connection:
        to = new_queue(connection)
        producer = Producer(connection)
        for key, options in zip(
            "abcd",
            ({"serializer": "json"}, {"serializer": "yaml"}, {"serializer": "pickle"}, {"compression": "bzip2"}),
            strict=True,
        ):
            with b.near(key):
                producer.publish({"key": key}, routing_key=to.name, **options)
        producer.publish(b"{not json", routing_key=to.name, content_type="application/json", content_encoding="utf-8")
        with Consumer(
            connection.channel(),
            [to],
            callbacks=[on_message],
            accept=["json", "yaml", "pickle"],
            on_decode_error=on_decode_error,
        ):
            drain(connection, lambda: len(seen) == 4 and bad)
        b.clean("after the consumer")


@boundary("kombu: its own event loop (Hub), call_later and call_soon in a callback", needs=("rabbitmq",))
def hub(b: Program) -> None:
    seen: list[Any] = []
    hub = Hub()
    with connect(b) as connection:
        connection.register_with_event_loop(hub)
        to = new_queue(connection)

        def on_message(body: Any, message: Any) -> None:
            b.far(body)
            message.ack()
            hub.call_later(0.05, late, body)
            hub.call_soon(late, body)

        def late(key: str) -> None:
            b.far(key)
            seen.append(key)
            if len(seen) == 4:
                hub.stop()

        with Consumer(connection, [to], callbacks=[on_message]):
            send_each(b, connection, to, "ab")
            with contextlib.suppress(hubs.Stop):
                hub.run_forever()
        b.clean("after the hub")


@boundary("kombu: requeue and reject: handled again, then by the dead-letter queue", needs=("rabbitmq",))
def requeue(b: Program) -> None:
    with connect(b) as connection:
        dead_exchange = Exchange(f"x-{uuid.uuid4().hex[:12]}", "fanout", durable=False)
        dead = Queue(f"dead-{uuid.uuid4().hex[:12]}", dead_exchange, durable=False)(connection.default_channel)
        dead.declare()
        to = new_queue(connection, queue_arguments={"x-dead-letter-exchange": dead_exchange.name})
        send_each(b, connection, to, "a")
        tries: list[Any] = []

        def on_message(body: Any, message: Any) -> None:
            b.far(body)
            tries.append(body)
            message.requeue() if len(tries) == 1 else message.reject_log_error(None, ())

        with Consumer(connection.channel(), [to], callbacks=[on_message]):
            drain(connection, lambda: len(tries) == 2)
        handle(connection, dead, lambda body, message: (b.far(body), one_header(b, message)), 1)


@boundary("kombu: get() in a loop, in a helper that returns the payload", needs=("rabbitmq",))
def get_loop(b: Program) -> None:
    def receive(to: Any) -> Any:
        message = to.get(no_ack=True)
        return message.payload if message else None

    def work(to: Any) -> None:
        while (key := receive(to)) is not None:
            b.far(key)
        b.clean("when it is empty")

    with connect(b) as connection:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        work(to)
        b.clean("after work()")
        send_each(b, connection, to, "c")
        for message in iter(lambda: to.get(), None):
            b.far(message.payload)
            message.ack()
        b.clean("after iter()")


@boundary("kombu: the connection breaks, ConsumerMixin consumes again", needs=("rabbitmq",))
def reconnects(b: Program) -> None:
    class Worker(ConsumerMixin):  # type: ignore[misc]
        def __init__(self, connection: Any) -> None:
            self.connection, self.seen = connection, 0

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([Queue(to.name, durable=False)], callbacks=[self.on_message], prefetch_count=1)]

        def on_message(self, body: Any, message: Any) -> None:
            b.far(body)
            self.seen += 1
            if self.seen == 1:
                self.connection.transport.close_connection(message.channel.connection)
                raise ConnectionResetError("lost")
            message.ack()
            self.should_stop = self.seen == 3

    with connect(b) as connection, connect(b) as other:
        to = new_queue(connection)
        send_each(b, connection, to, "ab")
        Worker(other).run()
        b.clean("after the worker")
