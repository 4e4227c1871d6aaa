"""Async message: pika."""

from __future__ import annotations

import contextlib
import functools
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
    import asyncio

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
