"""Async message: pika."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
from opentelemetry import trace
from pika import BasicProperties, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.pika:PikaInstrumentor",
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
        channel.basic_publish("", sys.argv[2], b"x", pika.BasicProperties(headers={name: value}))
"""
HOSTILE = 4 * 5


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BOUNDARY_"))}


def parameters(b: Program) -> pika.ConnectionParameters:
    host, _, port = b.address("rabbitmq").partition(":")
    return pika.ConnectionParameters(host, int(port))


@contextlib.contextmanager
def channel(b: Program) -> Iterator[Any]:
    with BlockingConnection(parameters(b)) as connection:
        yield connection.channel()


def new_queue(ch: Any, **options: Any) -> str:
    name = f"queue-{uuid.uuid4().hex[:12]}"
    ch.queue_declare(name, **options)
    return name


def send_each(b: Program, ch: Any, queue: str, keys: str, **properties: Any) -> None:
    for key in keys:
        with b.near(key):
            ch.basic_publish("", queue, key.encode(), BasicProperties(**properties) if properties else None)


def handle(ch: Any, queue: str, callback: Callable[..., Any], count: int) -> None:
    """Consumes until the callback was called so many times."""
    left = [count]

    def counted(*message: Any) -> None:
        left[0] -= 1
        if not left[0]:
            ch.stop_consuming()
        callback(*message)

    ch.basic_consume(queue, counted, auto_ack=True)
    ch.start_consuming()


def wait_until(connection: Any, true: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        connection.process_data_events(time_limit=0.1)


def one_header(b: Program, properties: Any) -> None:
    names = [name.lower() for name in properties.headers or {}]
    if names.count("traceparent") != 1:
        b.leak(f"headers: {properties.headers}")


# ------------------------------------------------------------------------------------------------------ basic_consume


@boundary("pika: basic_consume callback", needs=("rabbitmq",))
def callback(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)
        b.clean("after start_consuming")


@boundary("pika: callback by position and by keyword, bound method, partial", needs=("rabbitmq",))
def callback_kinds(b: Program) -> None:
    class Service:
        def on_message(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            seen.append(body)

        def __call__(self, note: str, *message: Any) -> None:
            self.on_message(*message)

    seen: list[bytes] = []
    service = Service()
    with channel(b) as ch:
        queues = [new_queue(ch) for _ in "abc"]
        for key, name in zip("abc", queues, strict=True):
            send_each(b, ch, name, key)
        ch.basic_consume(queues[0], service.on_message, True)
        ch.basic_consume(queue=queues[1], on_message_callback=functools.partial(service, "note"), auto_ack=True)
        ch.basic_consume(queues[2], on_message_callback=lambda *message: service("", *message), auto_ack=True)
        wait_until(ch.connection, lambda: len(seen) == 3)
        b.clean("after process_data_events")


@boundary("pika: callback raises, a supervisor consumes again", needs=("rabbitmq",))
def callback_raises(b: Program) -> None:
    def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        b.far(body.decode())
        ch.basic_ack(method.delivery_tag)
        raise ValueError(body)

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        ch.basic_qos(prefetch_count=1)  # a second one that has come already would wait for the next event
        ch.basic_consume(name, on_message)
        for _ in "ab":
            with contextlib.suppress(ValueError):
                ch.start_consuming()
            b.clean("in the supervisor")


@boundary("pika: callback publishes to the next, three hops", needs=("rabbitmq",))
def callback_relays(b: Program) -> None:
    with channel(b) as ch:
        first, second, third = (new_queue(ch) for _ in range(3))
        done: list[bytes] = []

        def relay(to: str, ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far("a")
            ch.basic_publish(exchange="", routing_key=to, body=body + b"!")

        def last(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far("a")
            done.append(body)

        ch.basic_consume(first, functools.partial(relay, second), auto_ack=True)
        ch.basic_consume(second, functools.partial(relay, third), auto_ack=True)
        ch.basic_consume(third, last, auto_ack=True)
        send_each(b, ch, first, "a")
        wait_until(ch.connection, lambda: done)


@boundary("pika: callback hands the message to a thread, acknowledged by add_callback_threadsafe", needs=("rabbitmq",))
def callback_to_thread(b: Program) -> None:
    done: list[int] = []

    def work(ch: Any, tag: int, key: str) -> None:
        time.sleep(0.2)
        b.far(key)

        def ack() -> None:
            b.far(key)
            ch.basic_ack(tag)
            done.append(tag)

        ch.connection.add_callback_threadsafe(ack)

    def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        threading.Thread(target=work, args=(ch, method.delivery_tag, body.decode())).start()

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        ch.basic_consume(name, on_message)
        wait_until(ch.connection, lambda: len(done) == 2)
        b.clean("after the callbacks")


@boundary("pika: callback hands the message to a pool", needs=("rabbitmq",))
def callback_to_pool(b: Program) -> None:
    with ThreadPoolExecutor(2) as pool, channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "abc")

        def work(key: str) -> None:
            time.sleep(0.1)
            b.far(key)

        handle(ch, name, lambda ch, method, properties, body: pool.submit(work, body.decode()), 3)


@boundary("pika: callback puts the message into a queue", needs=("rabbitmq",))
def callback_to_queue(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        while (body := jobs.get()) is not None:
            b.far(body.decode())

    worker = threading.Thread(target=work)
    worker.start()
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        handle(ch, name, lambda ch, method, properties, body: jobs.put(body), 2)
    jobs.put(None)
    worker.join()


@boundary("pika: consumer thread that was started inside of a request", needs=("rabbitmq",))
def consumer_in_request(b: Program) -> None:
    def run() -> None:
        with channel(b) as mine:
            handle(mine, name, lambda ch, method, properties, body: b.far(body.decode()), 2)

    with channel(b) as ch:
        name = new_queue(ch)
        with b.span("starts the consumer"):
            worker = threading.Thread(target=run)
            worker.start()
        send_each(b, ch, name, "ab")
        worker.join()


@boundary("pika: start_consuming inside of a worker's main span", needs=("rabbitmq",))
def consuming_inside_a_span(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        with b.span("worker") as worker:
            handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)
            if trace.get_current_span() is not worker:
                b.leak("in the worker's span after start_consuming")


@boundary("pika: callback of a message waits for another (process_data_events inside of it)", needs=("rabbitmq",))
def nested_events(b: Program) -> None:
    with channel(b) as ch:
        outer, inner = new_queue(ch), new_queue(ch)
        done: list[bytes] = []

        def on_outer(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            got = (None, None, None)
            while got[0] is None:
                got = other.basic_get(inner, auto_ack=True)
            b.far("b")
            finish(body)

        def finish(body: bytes) -> None:
            done.append(body)

        send_each(b, ch, outer, "a")
        send_each(b, ch, inner, "b")
        with channel(b) as other:
            ch.basic_consume(outer, on_outer, auto_ack=True)
            wait_until(ch.connection, lambda: done)
        b.clean("after both")


@boundary("pika: connection and channel opened before instrument()", needs=("rabbitmq",))
def opened_before(b: Program) -> None:
    contribs, ours = switched_off()
    with channel(b) as ch:
        name = new_queue(ch)
        ch.basic_consume(name, lambda ch, method, properties, body: (b.far(body.decode()), seen.append(body)), True)
        seen: list[bytes] = []
        switch_on(contribs, ours)
        send_each(b, ch, name, "ab")
        wait_until(ch.connection, lambda: len(seen) == 2)
        b.clean("after the messages")


@boundary("pika: channel opened before, consumer and get afterwards", needs=("rabbitmq",))
def channel_before(b: Program) -> None:
    contribs, ours = switched_off()
    with channel(b) as ch:
        name = new_queue(ch)
        switch_on(contribs, ours)
        send_each(b, ch, name, "abc")
        get_one(b, ch, name)
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)


def get_one(b: Program, ch: Any, name: str) -> None:
    _method, _properties, body = ch.basic_get(name, auto_ack=True)
    b.far(body.decode())


def switched_off() -> tuple[bool, bool]:
    """What the mode had switched on; now it is off, as it is in a program that instruments late."""
    mode = os.environ["BOUNDARY_MODE"].split("+")
    if "tracefill" in mode:
        import tracefill

        tracefill.uninstall()
    if "contrib" in mode:
        instrumentor().uninstrument()
    return "contrib" in mode, "tracefill" in mode


def switch_on(contribs: bool, ours: bool) -> None:
    if contribs and os.environ["BOUNDARY_MODE"].startswith("contrib"):
        instrumentor().instrument()
    if ours:
        import tracefill

        tracefill.install(queues=True, subprocess=True)
    if contribs and not os.environ["BOUNDARY_MODE"].startswith("contrib"):
        instrumentor().instrument()


def instrumentor() -> Any:
    from opentelemetry.instrumentation.pika import PikaInstrumentor

    return PikaInstrumentor()


# -------------------------------------------------------------------------------------------------- consume(), basic_get


@boundary("pika: consume() generator", needs=("rabbitmq",))
def generator(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        left = 2
        for method, _, body in ch.consume(name):
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
            left -= 1
            if not left:
                break
        b.clean("after the consume generator loop")
        ch.cancel()
        b.clean("after cancel()")


@boundary("pika: consume() generator with inactivity_timeout", needs=("rabbitmq",))
def generator_with_timeouts(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        for method, _properties, body in ch.consume(queue=name, auto_ack=True, inactivity_timeout=0.3):
            if method is None:
                b.clean("while nothing comes")
                break
            b.far(body.decode())
        ch.cancel()
        b.clean("after cancel()")


@boundary("pika: next() of the consume() generator", needs=("rabbitmq",))
def generator_by_next(b: Program) -> None:
    def work() -> None:
        messages = ch.consume(name, auto_ack=True)
        for _ in "ab":
            _, _, body = next(messages)
            b.far(body.decode())
        ch.cancel()

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        work()
        b.clean("after work()")


@boundary("pika: consume() left by an exception, then again", needs=("rabbitmq",))
def generator_raises(b: Program) -> None:
    def work() -> None:
        for _method, _properties, body in ch.consume(name, auto_ack=True):
            b.far(body.decode())
            raise ValueError(body)

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        for _ in "ab":
            with contextlib.suppress(ValueError):
                work()
            b.clean("after the loop that raised")


@boundary("pika: consume() in a generator of the program's own", needs=("rabbitmq",))
def generator_in_generator(b: Program) -> None:
    def bodies(ch: Any, name: str) -> Iterator[str]:
        for _, _, body in ch.consume(name, auto_ack=True):
            yield body.decode()

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        left = 2
        for key in bodies(ch, name):
            b.far(key)
            left -= 1
            if not left:
                break
        b.clean("after the loop")


@boundary("pika: consume(), each message to a pool", needs=("rabbitmq",))
def generator_to_pool(b: Program) -> None:
    def work(key: str) -> None:
        time.sleep(0.1)
        b.far(key)

    with ThreadPoolExecutor(2) as pool, channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "abc")
        left = 3
        for _, _, body in ch.consume(name, auto_ack=True):
            pool.submit(work, body.decode())
            left -= 1
            if not left:
                break
        b.clean("after the loop")


@boundary("pika: basic_get", needs=("rabbitmq",))
def get(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        for _ in "ab":
            method, _properties, body = ch.basic_get(queue=name, auto_ack=False)
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
        if ch.basic_get(name) != (None, None, None):
            b.leak("a third message")
        b.clean("when the queue is empty")


@boundary("pika: basic_get in a function that returns the body", needs=("rabbitmq",))
def get_decoded(b: Program) -> None:
    def receive() -> str:
        _, _, body = ch.basic_get(name, auto_ack=True)
        return str(body.decode())

    def work() -> None:
        for _ in "ab":
            key = receive()
            b.far(key)

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        work()
        b.clean("after work()")


# ---------------------------------------------------------------------------------------------------------- callbacks


@boundary("pika: connection.call_later", needs=("rabbitmq",))
def call_later(b: Program) -> None:
    done: list[str] = []
    with channel(b) as ch:
        for key in "ab":
            with b.near(key):
                ch.connection.call_later(0.1, lambda key=key: (b.far(key), done.append(key)))
        ch.connection.call_later(0, lambda: b.clean("a timer of nobody's"))
        wait_until(ch.connection, lambda: len(done) == 2)
        b.clean("after the timers")


@boundary("pika: add_callback_threadsafe from a request's thread", needs=("rabbitmq",))
def add_callback_threadsafe(b: Program) -> None:
    done: list[str] = []

    def request(connection: Any, key: str) -> None:
        with b.near(key):
            connection.add_callback_threadsafe(lambda: publish(key))

    def publish(key: str) -> None:
        ch.basic_publish("", name, key.encode())
        done.append(key)

    with channel(b) as ch:
        name = new_queue(ch)
        for key in "ab":
            threading.Thread(target=request, args=(ch.connection, key)).start()
        wait_until(ch.connection, lambda: len(done) == 2)
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)


# ----------------------------------------------------------------------------------------------- retries, dead letters


def dead_letter_queues(ch: Any) -> tuple[str, str]:
    exchange, dead = f"dlx-{uuid.uuid4().hex[:12]}", new_queue(ch)
    ch.exchange_declare(exchange, "fanout")
    ch.queue_bind(dead, exchange)
    return new_queue(ch, arguments={"x-dead-letter-exchange": exchange}), dead


@boundary("pika: dead-letter exchange (reject, broker re-routes)", needs=("rabbitmq",))
def dead_letter_exchange(b: Program) -> None:
    with channel(b) as ch:
        name, dead = dead_letter_queues(ch)
        send_each(b, ch, name, "a")

        def reject(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            ch.basic_reject(method.delivery_tag, requeue=False)
            ch.stop_consuming()

        ch.basic_consume(name, reject)
        ch.start_consuming()
        handle(ch, dead, lambda ch, method, properties, body: b.far(body.decode()), 1)


@boundary("pika: requeued by nack, handled again", needs=("rabbitmq",))
def requeued(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "a")

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            if method.redelivered:
                ch.stop_consuming()
                ch.basic_ack(method.delivery_tag)
            else:
                ch.basic_nack(method.delivery_tag, requeue=True)

        ch.basic_consume(name, on_message)
        ch.start_consuming()


def republish(b: Program, properties_of: Callable[[Any], Any]) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        retry = f"{name}.retry"
        ch.queue_declare(retry)
        send_each(b, ch, name, "a", headers={"customer": 7})

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            before = dict(properties.headers)
            with b.span("near-hop"):
                ch.basic_publish("", retry, body, properties_of(properties))
            if properties.headers != before:
                b.leak(f"into the received headers: {properties.headers}")

        def on_retry(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            b.far("-hop")
            one_header(b, properties)

        handle(ch, name, on_message, 1)
        handle(ch, retry, on_retry, 1)


@boundary("pika: retry: republish with the received properties object", needs=("rabbitmq",))
def republish_properties(b: Program) -> None:
    republish(b, lambda properties: properties)


@boundary("pika: retry: republish with a copy of the received headers", needs=("rabbitmq",))
def republish_headers(b: Program) -> None:
    republish(b, lambda properties: BasicProperties(headers={**properties.headers, "x-retry-count": 1}))


@boundary("pika: retry: republish with fresh headers", needs=("rabbitmq",))
def republish_fresh(b: Program) -> None:
    republish(b, lambda properties: None)


@boundary("pika: republish on another channel after the callback returned (buffered batch)", needs=("rabbitmq",))
def buffered(b: Program) -> None:
    with channel(b) as ch:
        name, target = new_queue(ch), new_queue(ch)
        send_each(b, ch, name, "ab")
        buffer: list[Any] = []
        handle(ch, name, lambda ch, method, properties, body: buffer.append((properties, body)), 2)
        out = ch.connection.channel()
        for properties, body in buffer:
            out.basic_publish("", target, body, properties)
        handle(out, target, lambda ch, method, properties, body: b.far(body.decode()), 2)


# ------------------------------------------------------------------------------------------------------------- RPC


@boundary("pika: RPC reply_to / correlation_id", needs=("rabbitmq",))
def rpc(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        ready = threading.Event()
        server = threading.Thread(target=serve_rpc, args=(b, name, ready))
        server.start()
        ready.wait(DEADLINE_S)
        replies: list[bytes] = []
        reply_queue = ch.queue_declare("", exclusive=True).method.queue
        ch.basic_consume(
            reply_queue,
            lambda ch, method, properties, body: (b.far(body.decode()), replies.append(body)),
            auto_ack=True,
        )
        for key in "ab":
            with b.near(key):
                properties = BasicProperties(reply_to=reply_queue, correlation_id=uuid.uuid4().hex)
                ch.basic_publish("", name, key.encode(), properties)
                wait_until(ch.connection, lambda: replies)
                replies.clear()
        server.join()
        b.clean("after the replies")


@boundary("pika: RPC by direct reply-to", needs=("rabbitmq",))
def rpc_direct(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        ready = threading.Event()
        server = threading.Thread(target=serve_rpc, args=(b, name, ready))
        server.start()
        ready.wait(DEADLINE_S)
        for key in "ab":
            with b.near(key):
                answers = ch.consume("amq.rabbitmq.reply-to", auto_ack=True, inactivity_timeout=0.1)
                next(answers)
                ch.basic_publish("", name, key.encode(), BasicProperties(reply_to="amq.rabbitmq.reply-to"))
                for method, _, body in answers:
                    if method is not None:
                        b.far(body.decode())
                        break
                ch.cancel()
        server.join()


def serve_rpc(b: Program, name: str, ready: threading.Event) -> None:
    def on_request(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        b.far(body.decode())
        answer = BasicProperties(correlation_id=properties.correlation_id)
        ch.basic_publish(exchange="", routing_key=properties.reply_to, properties=answer, body=body)

    with channel(b) as ch:
        ready.set()
        handle(ch, name, on_request, 2)


# --------------------------------------------------------------------------------------------------------- adapters


@boundary("pika: SelectConnection async adapter", needs=("rabbitmq",))
def select_connection(b: Program) -> None:
    done: list[bytes] = []

    def on_open(connection: Any) -> None:
        connection.channel(on_open_callback=on_channel)

    def on_channel(ch: Any) -> None:
        name = f"queue-{uuid.uuid4().hex[:12]}"
        ch.queue_declare(name, callback=lambda frame: on_declared(ch, name))

    def on_declared(ch: Any, name: str) -> None:
        ch.basic_consume(name, on_message, auto_ack=True)
        for key in "ab":
            with b.near(key):
                ch.basic_publish("", name, key.encode())

    def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        b.far(body.decode())
        ch.connection.ioloop.call_later(0.05, lambda: later(ch.connection, body))

    def later(connection: Any, body: bytes) -> None:
        b.far(body.decode())
        done.append(body)
        if len(done) == 2:
            connection.close()

    connection = pika.SelectConnection(
        parameters(b), on_open_callback=on_open, on_close_callback=lambda connection, _: connection.ioloop.stop()
    )
    connection.ioloop.start()
    b.clean("after the loop")


@boundary("pika: SelectConnection on a thread, basic_get, requests by add_callback_threadsafe", needs=("rabbitmq",))
def select_connection_get(b: Program) -> None:
    opened, done = threading.Event(), threading.Event()
    channels: list[Any] = []

    def on_channel(ch: Any) -> None:
        channels.append(ch)
        ch.queue_declare(name, callback=lambda frame: opened.set())

    def publish(key: str) -> None:
        channels[0].basic_publish(exchange="", routing_key=name, body=key.encode())
        channels[0].basic_get(name, on_message, auto_ack=True)

    def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        b.far(body.decode())
        done.set()

    name = f"queue-{uuid.uuid4().hex[:12]}"
    connection = pika.SelectConnection(
        parameters(b),
        on_open_callback=lambda connection: connection.channel(on_open_callback=on_channel),
        on_close_callback=lambda connection, _: connection.ioloop.stop(),
    )
    loop = threading.Thread(target=connection.ioloop.start)
    loop.start()
    opened.wait(DEADLINE_S)
    for key in "ab":
        with b.near(key):
            connection.ioloop.add_callback_threadsafe(functools.partial(publish, key))
        done.wait(DEADLINE_S)
        done.clear()
    connection.ioloop.add_callback_threadsafe(connection.close)
    loop.join()


@boundary("pika: AsyncioConnection", needs=("rabbitmq",))
async def asyncio_connection(b: Program) -> None:
    from pika.adapters.asyncio_connection import AsyncioConnection

    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Any] = loop.create_future()
    done: asyncio.Queue[str] = asyncio.Queue()
    name = f"queue-{uuid.uuid4().hex[:12]}"

    async def work(body: bytes) -> None:
        await asyncio.sleep(0.05)
        b.far(body.decode())
        done.put_nowait(body.decode())

    def on_channel(ch: Any) -> None:
        ch.queue_declare(name, callback=lambda frame: opened.set_result(ch))

    with b.span("opens the connection"):
        connection = AsyncioConnection(
            parameters(b), on_open_callback=lambda connection: connection.channel(on_open_callback=on_channel)
        )
        ch = await opened
    tasks: list[Any] = []
    ch.basic_consume(name, lambda ch, method, properties, body: tasks.append(asyncio.create_task(work(body))), True)
    for key in "ab":
        with b.near(key):
            ch.basic_publish("", name, key.encode())
    for _ in "ab":
        await done.get()
    connection.close()


# ----------------------------------------------------------------------------------------------------------- sending


@boundary("pika: properties and headers None, empty, shared, read-only, by position", needs=("rabbitmq",))
def header_arguments(b: Program) -> None:
    shared = BasicProperties(headers={"customer": 7}, content_type="text/plain")
    read_only = BasicProperties()
    read_only.headers = types.MappingProxyType({"customer": 7, "Traceparent": "00-00-00-00"})
    with channel(b) as ch:
        name = new_queue(ch)
        sends: list[Callable[[bytes], Any]] = [
            lambda body: ch.basic_publish("", name, body),
            lambda body: ch.basic_publish("", name, body, None, False),
            lambda body: ch.basic_publish(exchange="", routing_key=name, body=body, properties=BasicProperties()),
            lambda body: ch.basic_publish("", name, body, BasicProperties(headers={}), mandatory=True),
            lambda body: ch.basic_publish("", name, body, shared),
            lambda body: ch.basic_publish("", name, body, properties=shared),
            lambda body: ch.basic_publish("", name, body, read_only),
        ]
        keys = "abcdefg"
        for key, send in zip(keys, sends, strict=True):
            with b.near(key):
                send(key.encode())

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            one_header(b, properties)

        handle(ch, name, on_message, len(keys))
    if shared.headers != {"customer": 7} or read_only.headers["Traceparent"] != "00-00-00-00":
        b.leak(f"into the caller's headers: {shared.headers}")


@boundary("pika: publisher confirms, transactions, topic exchange", needs=("rabbitmq",))
def confirmed(b: Program) -> None:
    with channel(b) as ch:
        exchange, name = f"events-{uuid.uuid4().hex[:12]}", new_queue(ch)
        ch.exchange_declare(exchange, "topic")
        ch.queue_bind(name, exchange, "order.*")
        with b.near("a"):
            ch.confirm_delivery()
            ch.basic_publish(exchange, "order.created", b"a", mandatory=True)
        other = ch.connection.channel()
        with b.near("b"):
            other.tx_select()
            other.basic_publish(exchange, "order.paid", b"b")
            other.tx_commit()
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)


@boundary("pika: a subclass of BlockingConnection, a channel handed around", needs=("rabbitmq",))
def subclass(b: Program) -> None:
    class Connection(BlockingConnection):
        def send(self, to: str, body: bytes) -> None:
            self.channel().basic_publish("", to, body)

    with Connection(parameters(b)) as connection:
        ch = connection.channel()
        name = new_queue(ch)
        with b.near("a"):
            connection.send(name, b"a")
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 1)


@boundary("pika: message that nobody receives comes back", needs=("rabbitmq",))
def returned(b: Program) -> None:
    with channel(b) as ch:
        back: list[bytes] = []
        ch.add_on_return_callback(lambda ch, method, properties, body: (b.far(body.decode()), back.append(body)))
        for key in "ab":
            with b.near(key):
                ch.basic_publish("", f"nowhere-{uuid.uuid4().hex}", key.encode(), mandatory=True)
        wait_until(ch.connection, lambda: len(back) == 2)
        b.clean("after the returns")


# ---------------------------------------------------------------------------------------------------------- own roots


@boundary("pika: hostile trace headers of strangers", expect="own root", needs=("rabbitmq",))
def hostile_headers(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        subprocess.run(
            [sys.executable, "-c", STRANGER, b.address("rabbitmq"), name], env=plain_environment(), check=True
        )
        send_each(b, ch, new_queue(ch), "-")
        handle(ch, name, lambda *message: b.far("-"), HOSTILE // 2)
        for _ in range(HOSTILE // 2):
            ch.basic_get(name, auto_ack=True)
            b.far("-")


@boundary("pika: a timer that a message's handler has not asked for", expect="own root", needs=("rabbitmq",))
def periodic(b: Program) -> None:
    with channel(b) as ch:
        name, done = new_queue(ch), []

        def tick() -> None:
            b.far("-")
            done.append(1)

        ch.connection.call_later(0.2, tick)
        send_each(b, ch, name, "-")
        handle(ch, name, lambda *message: None, 1)
        wait_until(ch.connection, lambda: done)


# ---------------------------------------------------------------------------------------- services as they are written


@boundary(
    "pika: worker object with a connection on its own thread, stopped by add_callback_threadsafe", needs=("rabbitmq",)
)
def worker_object(b: Program) -> None:
    class Worker(threading.Thread):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.queue = name
            self.ready, self.done = threading.Event(), threading.Semaphore(0)

        def run(self) -> None:
            self.connection = BlockingConnection(parameters(b))
            ch = self.connection.channel()
            ch.basic_qos(prefetch_count=1)
            ch.basic_consume(queue=self.queue, on_message_callback=self.on_message)
            self.channel = ch
            self.ready.set()
            ch.start_consuming()
            self.connection.close()

        def on_message(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            ch.basic_ack(delivery_tag=method.delivery_tag)
            self.done.release()

    with channel(b) as ch:
        name = new_queue(ch)
        with b.span("startup"):
            worker = Worker(name)
            worker.start()
            worker.ready.wait(DEADLINE_S)
        for key in "ab":
            send_each(b, ch, name, key)
            worker.done.acquire(timeout=DEADLINE_S)
        worker.connection.add_callback_threadsafe(worker.channel.stop_consuming)
        worker.join()


@boundary("pika: consume() held in a variable, left by break, cancelled inside of the loop", needs=("rabbitmq",))
def generator_in_variable(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "abcd")
        messages = ch.consume(name, inactivity_timeout=1)
        for method, _, body in messages:
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
            if body == b"b":
                break
        b.clean("after the loop")
        ch.cancel()
        for method, _, body in ch.consume(name):
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
            if body == b"d":
                ch.cancel()
        b.clean("after the loop that was cancelled")


@boundary("pika: islice, enumerate and zip of consume()", needs=("rabbitmq",))
def generator_sliced(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "abcdef")
        messages = ch.consume(name, auto_ack=True)
        for _, _, body in itertools.islice(messages, 2):
            b.far(body.decode())
        b.clean("after islice")
        for number, (_, _, body) in enumerate(messages):
            b.far(body.decode())
            if number:
                break
        b.clean("after enumerate")
        for _, (_, _, body) in zip(range(2), messages, strict=False):
            b.far(body.decode())
        b.clean("after zip")


@boundary("pika: consume(), requests in the same loop when nothing comes", needs=("rabbitmq",))
def generator_idle(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        idle = 0
        send_each(b, ch, name, "ab")
        for method, _, body in ch.consume(name, inactivity_timeout=0.2):
            if method is None:
                b.clean("when idle")
                idle += 1
                if idle == 2:
                    break
                with b.near("c"):
                    ch.basic_publish("", name, b"c")
                continue
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
        ch.cancel()


@boundary("pika: basic_get until the queue is empty: while, walrus, iter() with a sentinel", needs=("rabbitmq",))
def get_until_empty(b: Program) -> None:
    def drain() -> None:
        while True:
            method, _, body = ch.basic_get(name)
            if method is None:
                b.clean("when it is empty")
                return
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        drain()
        send_each(b, ch, name, "cd")
        while (got := ch.basic_get(name, auto_ack=True))[0]:
            b.far(got[2].decode())
        b.clean("after walrus")
        send_each(b, ch, name, "ef")
        for _, _, body in iter(functools.partial(ch.basic_get, name, auto_ack=True), (None, None, None)):
            b.far(body.decode())
        b.clean("after iter()")


@boundary("pika: basic_get in one method, handled in another", needs=("rabbitmq",))
def get_to_handler(b: Program) -> None:
    class Source:
        def __init__(self, ch: Any, name: str) -> None:
            self.ch, self.name = ch, name

        def receive(self) -> Any:
            return self.ch.basic_get(self.name, auto_ack=True)

    def dispatch(message: Any) -> None:
        method, _properties, body = message
        assert method
        b.far(body.decode())

    def step(source: Source) -> bool:
        message = source.receive()
        if message[0] is None:
            return False
        dispatch(message)
        return True

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        source = Source(ch, name)
        while step(source):
            b.clean("between two steps")
        b.clean("after the last")


@boundary("pika: retry by a queue with a TTL whose dead letters come back", needs=("rabbitmq",))
def delayed_retry(b: Program) -> None:
    with channel(b) as ch:
        exchange, name, waiting = f"x-{uuid.uuid4().hex[:12]}", *(f"queue-{uuid.uuid4().hex[:12]}" for _ in "ab")
        ch.exchange_declare(exchange)
        ch.queue_declare(name, arguments={"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "wait"})
        ch.queue_declare(
            waiting,
            arguments={"x-message-ttl": 100, "x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "work"},
        )
        ch.queue_bind(name, exchange, "work")
        ch.queue_bind(waiting, exchange, "wait")
        tries = []
        with b.near():
            ch.basic_publish(exchange, "work", b"order", BasicProperties(delivery_mode=2))

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far()
            tries.append(properties.headers.get("x-death"))
            one_header(b, properties)
            if len(tries) < 3:
                ch.basic_nack(method.delivery_tag, requeue=False)
            else:
                ch.basic_ack(method.delivery_tag)
                ch.stop_consuming()

        ch.basic_consume(name, on_message)
        ch.start_consuming()


@boundary("pika: retry: published with an expiration to a delay queue from within the callback", needs=("rabbitmq",))
def expiration_retry(b: Program) -> None:
    with channel(b) as ch:
        name = new_queue(ch)
        delay = new_queue(ch, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name})
        send_each(b, ch, name, "a", headers={"x-retry": 0})

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far("a")
            one_header(b, properties)
            retry = properties.headers["x-retry"]
            if retry == 2:
                ch.stop_consuming()
                return
            properties.headers["x-retry"] = retry + 1
            properties.expiration = "50"
            with b.span(f"near-{retry}"):
                ch.basic_publish("", delay, body, properties)

        ch.basic_consume(name, on_message, auto_ack=True)
        ch.start_consuming()


@boundary("pika: an RPC client class that waits by process_data_events", needs=("rabbitmq",))
def rpc_client(b: Program) -> None:
    class Client:
        def __init__(self) -> None:
            self.connection = BlockingConnection(parameters(b))
            self.channel = self.connection.channel()
            self.callback_queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
            self.channel.basic_consume(self.callback_queue, self.on_response, auto_ack=True)
            self.response: bytes | None = None

        def on_response(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
            if self.corr_id == properties.correlation_id:
                self.response = body

        def call(self, n: str) -> bytes:
            self.response, self.corr_id = None, uuid.uuid4().hex
            self.channel.basic_publish(
                exchange="",
                routing_key=name,
                properties=BasicProperties(reply_to=self.callback_queue, correlation_id=self.corr_id),
                body=n.encode(),
            )
            while self.response is None:
                self.connection.process_data_events(time_limit=5)
            return self.response

    def serve() -> None:
        def on_request(ch: Any, method: Any, props: Any, body: bytes) -> None:
            with b.span(f"far{body.decode()}"):
                ch.basic_publish(
                    exchange="",
                    routing_key=props.reply_to,
                    properties=BasicProperties(correlation_id=props.correlation_id),
                    body=body,
                )
            ch.basic_ack(delivery_tag=method.delivery_tag)
            left.pop()
            if not left:
                ch.stop_consuming()

        left = [1, 2]
        with channel(b) as mine:
            mine.basic_qos(prefetch_count=1)
            mine.basic_consume(name, on_request)
            mine.start_consuming()

    with channel(b) as ch:
        name = new_queue(ch)
        server = threading.Thread(target=serve)
        server.start()
        client = Client()
        for key in "ab":
            with b.near(key) as near:
                client.call(key)
                if trace.get_current_span() is not near:
                    b.leak("after the call")
                b.far(key)
        b.clean("after the calls")
        server.join()
        client.connection.close()


@boundary(
    "pika: the callback of one message calls another service and waits on the same connection", needs=("rabbitmq",)
)
def rpc_inside_callback(b: Program) -> None:
    with channel(b) as ch:
        outer, inner, replies = new_queue(ch), new_queue(ch), new_queue(ch)
        answers: list[bytes] = []

        def on_outer(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far("a")
            rpc_channel.basic_publish("", inner, b"q", BasicProperties(reply_to=replies))
            while not answers:
                answer = rpc_channel.basic_get(replies, auto_ack=True)
                if answer[0]:
                    answers.append(answer[2])
                ch.connection.process_data_events(0.02)
            b.far("a")

        def serve() -> None:
            with channel(b) as mine:

                def on_inner(ch: Any, method: Any, properties: Any, body: bytes) -> None:
                    b.far("a")
                    ch.basic_publish("", properties.reply_to, b"r")

                handle(mine, inner, on_inner, 1)

        server = threading.Thread(target=serve)
        server.start()
        rpc_channel = ch.connection.channel()
        send_each(b, ch, outer, "a")
        ch.basic_consume(outer, on_outer, auto_ack=True)
        wait_until(ch.connection, lambda: answers)
        server.join()
        b.clean("after all")


@boundary("pika: A -> B -> C, a thread and a connection each, properties shared by all", needs=("rabbitmq",))
def chain(b: Program) -> None:
    shared = BasicProperties(content_type="text/plain", delivery_mode=2, headers={"v": 1})

    def serve(own: str, to: str | None) -> None:
        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            one_header(b, properties)
            if to:
                ch.basic_publish("", to, body, shared)

        with channel(b) as mine:
            handle(mine, own, on_message, 3)

    with channel(b) as ch:
        names = [new_queue(ch) for _ in "abc"]
        threads = [threading.Thread(target=serve, args=pair) for pair in zip(names, [*names[1:], None], strict=True)]
        for thread in threads:
            thread.start()
        for key in "abc":
            with b.near(key):
                ch.basic_publish("", names[0], key.encode(), shared)
        for thread in threads:
            thread.join()
    if shared.headers != {"v": 1}:
        b.leak("into the shared properties")


@boundary("pika: a consumer in a process that was forked before, and one inside of a request", needs=("rabbitmq",))
def forked(b: Program) -> None:
    fork = multiprocessing.get_context("fork")
    with channel(b) as ch:
        name = new_queue(ch)
    first = fork.Process(target=consume_two, args=(b, name))
    first.start()
    with channel(b) as ch:
        send_each(b, ch, name, "ab")
        first.join(DEADLINE_S)
    with b.span("request that starts a worker"):
        second = fork.Process(target=consume_two, args=(b, name))
        second.start()
    with channel(b) as ch:
        send_each(b, ch, name, "cd")
    second.join(DEADLINE_S)


def consume_two(b: Program, name: str) -> None:
    with channel(b) as ch:
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)


@boundary("pika: BlockingConnection in asyncio.to_thread, callback by run_coroutine_threadsafe", needs=("rabbitmq",))
async def bridge_to_asyncio(b: Program) -> None:
    loop = asyncio.get_running_loop()

    async def work(key: str) -> None:
        await asyncio.sleep(0.02)
        b.far(key)

    def run() -> None:
        with channel(b) as mine:
            handle(
                mine,
                name,
                lambda ch, method, properties, body: asyncio.run_coroutine_threadsafe(work(body.decode()), loop),
                2,
            )

    with channel(b) as ch:
        name = new_queue(ch)
        consumer = asyncio.create_task(asyncio.to_thread(run))
        send_each(b, ch, name, "ab")
        await consumer
    await asyncio.sleep(0.2)


@boundary("pika: what was returned as unroutable is published again", needs=("rabbitmq",))
def unroutable(b: Program) -> None:
    with channel(b) as ch:
        ch.confirm_delivery()
        name = new_queue(ch)
        for key in "ab":
            with b.near(key) as near:
                try:
                    ch.basic_publish("", f"nowhere-{uuid.uuid4().hex}", key.encode(), mandatory=True)
                except UnroutableError as error:
                    [message] = error.messages
                    if trace.get_current_span() is not near:
                        b.leak("in the except clause")
                    ch.basic_publish("", name, message.body, message.properties)
        handle(ch, name, lambda ch, method, properties, body: (b.far(body.decode()), one_header(b, properties)), 2)


@boundary("pika: an outbox thread that publishes what requests put into a queue", needs=("rabbitmq",))
def outbox(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def publish() -> None:
        with channel(b) as mine:
            while (item := jobs.get()) is not None:
                mine.basic_publish("", name, item)

    with channel(b) as ch:
        name = new_queue(ch)
        publisher = threading.Thread(target=publish)
        publisher.start()
        for key in "ab":
            with b.near(key):
                jobs.put(key.encode())
        jobs.put(None)
        publisher.join()
        handle(ch, name, lambda ch, method, properties, body: b.far(body.decode()), 2)


@boundary("pika: the broker closes the channel in the callback, a new one goes on", needs=("rabbitmq",))
def channel_dies(b: Program) -> None:
    def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
        b.far(body.decode())
        ch.basic_ack(method.delivery_tag)
        if body == b"a":
            ch.exchange_declare("amq.direct", "topic")

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        ch.basic_qos(prefetch_count=1)
        ch.basic_consume(name, on_message)
        try:
            ch.start_consuming()
        except ChannelClosedByBroker:
            b.clean("after the channel was closed")
        handle(ch.connection.channel(), name, lambda ch, method, properties, body: b.far(body.decode()), 1)


@boundary("pika: SelectConnection, consumer and publisher as classes, confirms by callback", needs=("rabbitmq",))
def select_classes(b: Program) -> None:
    name = f"queue-{uuid.uuid4().hex[:12]}"

    class Service:
        def __init__(self) -> None:
            self.confirmed: list[int] = []
            self.handled: list[bytes] = []
            self.connection = pika.SelectConnection(
                parameters=parameters(b), on_open_callback=self.on_open, on_close_callback=self.on_closed
            )

        def on_open(self, connection: Any) -> None:
            connection.channel(on_open_callback=self.on_channel)

        def on_channel(self, ch: Any) -> None:
            self.channel = ch
            ch.add_on_close_callback(lambda ch, reason: None)
            ch.confirm_delivery(self.on_confirmation)
            ch.queue_declare(queue=name, callback=functools.partial(self.on_declared, note=1))

        def on_declared(self, frame: Any, note: int) -> None:
            self.channel.basic_qos(prefetch_count=1, callback=self.on_qos)

        def on_qos(self, frame: Any) -> None:
            self.tag = self.channel.basic_consume(name, self.on_message)
            self.schedule("a")

        def schedule(self, key: str) -> None:
            with b.near(key):
                self.connection.ioloop.call_later(0.01, functools.partial(self.publish, key))

        def publish(self, key: str) -> None:
            self.channel.basic_publish("", name, key.encode(), BasicProperties(app_id="x"))

        def on_confirmation(self, frame: Any) -> None:
            self.confirmed.append(frame.method.delivery_tag)
            self.maybe_stop()

        def on_message(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
            b.far(body.decode())
            ch.basic_ack(method.delivery_tag)
            self.handled.append(body)
            self.maybe_stop()

        def maybe_stop(self) -> None:
            if len(self.confirmed) != len(self.handled):
                return
            if len(self.handled) == 3:
                self.channel.basic_cancel(self.tag, self.on_cancelled)
            else:
                self.connection.ioloop.add_callback(functools.partial(self.schedule, "abc"[len(self.handled)]))

        def on_cancelled(self, frame: Any) -> None:
            self.connection.close()

        def on_closed(self, connection: Any, reason: Any) -> None:
            self.connection.ioloop.stop()

        def run(self) -> None:
            self.connection.ioloop.start()

    service = Service()
    service.run()
    b.clean("after the loop")


@boundary("pika: messages come while a request calls process_data_events", needs=("rabbitmq",))
def drained_by_events(b: Program) -> None:
    arrived: list[Any] = []
    with ThreadPoolExecutor(1) as pool, channel(b) as ch:
        name = new_queue(ch)

        def on_message(ch: Any, method: Any, properties: Any, body: bytes) -> None:
            arrived.append(pool.submit(b.far, body.decode()))

        ch.basic_consume(name, on_message, auto_ack=True)
        for key in "ab":
            with b.near(key) as near:
                ch.basic_publish("", name, key.encode())
                ch.connection.process_data_events(time_limit=0)
                ch.connection.sleep(0.1)
                if trace.get_current_span() is not near:
                    b.leak("after process_data_events")
        wait_until(ch.connection, lambda: len(arrived) == 2)


@boundary("pika: consume() through two generators of the program's own", needs=("rabbitmq",))
def pipeline(b: Program) -> None:
    def read(ch: Any, name: str) -> Iterator[Any]:
        for method, _properties, body in ch.consume(name, inactivity_timeout=0.3):
            if method is None:
                return
            yield method, body
            ch.basic_ack(method.delivery_tag)

    def parse(messages: Iterator[Any]) -> Iterator[str]:
        for _, body in messages:
            yield body.decode()

    with channel(b) as ch:
        name = new_queue(ch)
        send_each(b, ch, name, "ab")
        for key in parse(read(ch, name)):
            b.far(key)
        b.clean("after the pipeline")
