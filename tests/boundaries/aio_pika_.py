"""Async message: aio-pika."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import aio_pika
from aio_pika import DeliveryMode, ExchangeType, IncomingMessage, Message, connect_robust
from aio_pika.exceptions import QueueEmpty
from aio_pika.patterns import RPC, JsonMaster, JsonRPC, Master, NackMessage, RejectMessage
from aio_pika.pool import Pool
from opentelemetry import trace

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.aio_pika:AioPikaInstrumentor",
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


@contextlib.asynccontextmanager
async def opened(b: Program, connect: Any = aio_pika.connect_robust, **options: Any) -> AsyncIterator[Any]:
    """A channel."""
    connection = await connect(f"amqp://guest:guest@{b.address('rabbitmq')}/")
    async with connection:
        yield await connection.channel(**options)


async def new_queue(ch: Any, **options: Any) -> Any:
    return await ch.declare_queue(f"queue-{uuid.uuid4().hex[:12]}", **options)


async def send_each(b: Program, ch: Any, queue: Any, keys: str, **properties: Any) -> None:
    for key in keys:
        with b.near(key):
            await ch.default_exchange.publish(Message(key.encode(), **properties), queue.name)


class Done:
    """Counts what has been handled; carries no context to whoever waits, as a queue would."""

    def __init__(self) -> None:
        self._left = 0
        self._all = asyncio.Event()

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._all.set()

    async def wait(self, count: int) -> None:
        self._left += count
        if self._left:
            await asyncio.wait_for(self._all.wait(), DEADLINE_S)
        self._all.clear()


async def handle(queue: Any, callback: Callable[[Any], Any], count: int) -> None:
    """Consumes until the callback has handled so many messages."""
    done = Done()

    async def counted(message: Any) -> None:
        try:
            await callback(message)
        finally:
            done()

    tag = await queue.consume(counted, no_ack=True)
    await done.wait(count)
    await queue.cancel(tag)


def text(message: Any) -> str:
    return str(message.body.decode())


def one_header(b: Program, message: Any) -> None:
    if [name.lower() for name in message.headers].count("traceparent") != 1:
        b.leak(f"headers: {message.headers}")


# ----------------------------------------------------------------------------------------------------------- callbacks


@boundary("aio-pika: queue.consume(callback)", needs=("rabbitmq",))
async def callback(b: Program) -> None:
    async def on_message(message: Any) -> None:
        async with message.process(ignore_processed=True):
            await asyncio.sleep(0.01)
            b.far(text(message))

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await handle(queue, on_message, 2)
        b.clean("after the callbacks")


@boundary(
    "aio-pika: callback of the plain connection, bound method, partial, one that is not async", needs=("rabbitmq",)
)
async def callback_kinds(b: Program) -> None:
    done = Done()

    class Service:
        async def on_message(self, message: Any) -> None:
            self.on_message_at_once(message)

        async def on_message_with(self, note: str, message: Any) -> None:
            self.on_message_at_once(message)

        def on_message_at_once(self, message: Any) -> None:
            b.far(text(message))
            done()

    service = Service()
    async with opened(b, aio_pika.connect) as ch:
        queues = [await new_queue(ch) for _ in "abc"]
        await queues[0].consume(service.on_message, True)
        await queues[1].consume(callback=functools.partial(service.on_message_with, "note"), no_ack=True)
        await queues[2].consume(service.on_message_at_once, no_ack=True)
        for key, queue in zip("abc", queues, strict=True):
            await send_each(b, ch, queue, key)
        await done.wait(3)


@boundary("aio-pika: callback raises, the message is requeued", needs=("rabbitmq",))
async def callback_raises(b: Program) -> None:
    done = asyncio.Event()

    async def on_message(message: Any) -> None:
        async with message.process(requeue=True):
            b.far(text(message))
            if not message.redelivered:
                raise ValueError(message.body)
            done.set()

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "a")
        await queue.consume(on_message)
        await asyncio.wait_for(done.wait(), DEADLINE_S)
        b.clean("after the callbacks")


@boundary("aio-pika: callback publishes to the next, three hops", needs=("rabbitmq",))
async def callback_relays(b: Program) -> None:
    done = asyncio.Event()
    async with opened(b) as ch:
        first, second, third = [await new_queue(ch) for _ in range(3)]

        async def relay(to: Any, message: Any) -> None:
            b.far("a")
            await ch.default_exchange.publish(Message(message.body + b"!"), routing_key=to.name)

        async def last(message: Any) -> None:
            b.far("a")
            done.set()

        await first.consume(functools.partial(relay, second), no_ack=True)
        await second.consume(functools.partial(relay, third), no_ack=True)
        await third.consume(last, no_ack=True)
        await send_each(b, ch, first, "a")
        await asyncio.wait_for(done.wait(), DEADLINE_S)


@boundary("aio-pika: callback hands the message to asyncio.create_task / run_in_executor", needs=("rabbitmq",))
async def callback_to_task(b: Program) -> None:
    tasks: list[Any] = []

    async def work(message: Any) -> None:
        await asyncio.sleep(0.2)
        b.far(text(message))

    async def on_message(message: Any) -> None:
        tasks.append(asyncio.create_task(work(message)))
        tasks.append(asyncio.get_running_loop().run_in_executor(pool, b.far, text(message)))

    with ThreadPoolExecutor(1) as pool:
        async with opened(b) as ch:
            queue = await new_queue(ch)
            await send_each(b, ch, queue, "ab")
            await handle(queue, on_message, 2)
            await asyncio.gather(*tasks)


@boundary("aio-pika: callback puts the message into an asyncio.Queue", needs=("rabbitmq",))
async def callback_to_queue(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()

    async def work() -> None:
        while (message := await jobs.get()) is not None:
            b.far(text(message))

    worker = asyncio.create_task(work())
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await handle(queue, jobs.put, 2)
    await jobs.put(None)
    await worker


@boundary("aio-pika: connected and consuming inside of a request", needs=("rabbitmq",))
async def connected_in_request(b: Program) -> None:
    done = Done()

    async def on_message(message: Any) -> None:
        b.far(text(message))
        done()

    with b.span("connects"):
        connection = await aio_pika.connect_robust(f"amqp://guest:guest@{b.address('rabbitmq')}/")
        ch = await connection.channel()
        queue = await new_queue(ch)
        await queue.consume(on_message, no_ack=True)
    await send_each(b, ch, queue, "ab")
    await done.wait(2)
    await connection.close()


@boundary("aio-pika: connection, queue and consumer there before instrument()", needs=("rabbitmq",))
async def opened_before(b: Program) -> None:
    done = Done()

    async def on_message(message: Any) -> None:
        b.far(text(message))
        done()

    contribs, ours = switched_off()
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await queue.consume(on_message, no_ack=True)
        other = await new_queue(ch)
        switch_on(contribs, ours)
        await send_each(b, ch, queue, "ab")
        await done.wait(2)
        await send_each(b, ch, other, "cd")
        await get_one(b, other)
        await handle(other, on_message, 1)
        b.clean("after the messages")


async def get_one(b: Program, queue: Any) -> None:
    message = await queue.get(no_ack=True)
    b.far(text(message))


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
    from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor

    return AioPikaInstrumentor()


# ------------------------------------------------------------------------------------------------------- iterator, get


@boundary("aio-pika: async with queue.iterator()", needs=("rabbitmq",))
async def iterator(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        left = 2
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    await asyncio.sleep(0.01)
                    b.far(text(message))
                left -= 1
                if not left:
                    break
            b.clean("after the loop")
        b.clean("after the iterator")


@boundary("aio-pika: async for message in queue, of the plain connection", needs=("rabbitmq",))
async def queue_as_iterator(b: Program) -> None:
    async with opened(b, aio_pika.connect) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        left = 2
        async for message in queue:
            b.far(text(message))
            await message.ack()
            left -= 1
            if not left:
                break
        b.clean("after the loop")


@boundary("aio-pika: iterator with a timeout", needs=("rabbitmq",))
async def iterator_timeout(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        with contextlib.suppress(asyncio.TimeoutError):
            async with queue.iterator(timeout=0.5, no_ack=True) as messages:
                async for message in messages:
                    b.far(text(message))
        b.clean("after the timeout")


@boundary("aio-pika: anext(iterator), wait_for(anext(iterator))", needs=("rabbitmq",))
async def iterator_by_anext(b: Program) -> None:
    async def work() -> None:
        async with queue.iterator(no_ack=True) as messages:
            message = await anext(messages)
            b.far(text(message))
            message = await asyncio.wait_for(messages.__anext__(), DEADLINE_S)
            b.far(text(message))

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await work()
        b.clean("after work()")


@boundary("aio-pika: iterator, the loop raises, a supervisor starts it again", needs=("rabbitmq",))
async def iterator_raises(b: Program) -> None:
    async def run() -> None:
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    b.far(text(message))
                    raise ValueError(message.body)

    async with opened(b) as ch:
        await ch.set_qos(prefetch_count=1)
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        for _ in "ab":
            with contextlib.suppress(ValueError):
                await run()
            b.clean("in the supervisor")


@boundary("aio-pika: iterator, a task is cancelled while it waits", needs=("rabbitmq",))
async def iterator_cancelled(b: Program) -> None:
    handled = asyncio.Event()

    async def work() -> None:
        left = 2
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                b.far(text(message))
                left -= 1
                if not left:
                    handled.set()

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        with b.span("starts the worker"):
            worker = asyncio.create_task(work())
        await handled.wait()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        b.clean("after the task")


@boundary("aio-pika: iterator, a task for each message", needs=("rabbitmq",))
async def iterator_to_tasks(b: Program) -> None:
    async def work(message: Any) -> None:
        await asyncio.sleep(0.2)
        b.far(text(message))

    tasks = []
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "abc")
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                tasks.append(asyncio.create_task(work(message)))
                if len(tasks) == 3:
                    break
        b.clean("after the loop")
        await asyncio.gather(*tasks)


@boundary("aio-pika: iterator inside of a worker's main span", needs=("rabbitmq",))
async def iterator_inside_a_span(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        with b.span("worker") as worker:
            left = 2
            async with queue.iterator(no_ack=True) as messages:
                async for message in messages:
                    b.far(text(message))
                    left -= 1
                    if not left:
                        break
            if trace.get_current_span() is not worker:
                b.leak("in the worker's span after the loop")


@boundary("aio-pika: queue.get()", needs=("rabbitmq",))
async def get(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        for _ in "ab":
            message = await queue.get(timeout=DEADLINE_S)
            b.far(text(message))
            await message.ack()
        if await queue.get(fail=False) is not None:
            b.leak("a third message")
        b.clean("when the queue is empty")


@boundary("aio-pika: queue.get() in a coroutine that returns the body", needs=("rabbitmq",))
async def get_decoded(b: Program) -> None:
    async def receive() -> str:
        return text(await queue.get(no_ack=True))

    async def work() -> None:
        for _ in "ab":
            key = await receive()
            b.far(key)

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await work()
        b.clean("after work()")


@boundary("aio-pika: wait_for(queue.get())", needs=("rabbitmq",))
async def get_wait_for(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")

        async def work() -> None:
            for _ in "ab":
                message = await asyncio.wait_for(queue.get(no_ack=True), DEADLINE_S)
                b.far(text(message))

        await work()
        b.clean("after work()")


# ----------------------------------------------------------------------------------------------- retries, dead letters


@boundary("aio-pika: dead-letter exchange + DLQ consumer", needs=("rabbitmq",))
async def dead_letter_exchange(b: Program) -> None:
    async def reject(message: Any) -> None:
        await message.reject(requeue=False)

    async def on_dead(message: Any) -> None:
        b.far(text(message))
        done.set()

    done = asyncio.Event()
    async with opened(b) as ch:
        exchange = await ch.declare_exchange(f"dlx-{uuid.uuid4().hex[:12]}", ExchangeType.FANOUT)
        dead = await new_queue(ch)
        await dead.bind(exchange)
        queue = await new_queue(ch, arguments={"x-dead-letter-exchange": exchange.name})
        await send_each(b, ch, queue, "a")
        await queue.consume(reject)
        await dead.consume(on_dead, no_ack=True)
        await asyncio.wait_for(done.wait(), DEADLINE_S)


async def republish(b: Program, message_of: Callable[[Any], Any]) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        retry = await ch.declare_queue(f"{queue.name}.retry")
        await send_each(b, ch, queue, "a", headers={"customer": 7})

        async def on_message(message: Any) -> None:
            before = dict(message.headers)
            with b.span("near-hop"):
                await ch.default_exchange.publish(message_of(message), retry.name)
            if message.headers != before:
                b.leak(f"into the received headers: {message.headers}")

        async def on_retry(message: Any) -> None:
            b.far(text(message))
            b.far("-hop")
            one_header(b, message)

        await handle(queue, on_message, 1)
        await handle(retry, on_retry, 1)


@boundary("aio-pika: retry: republish with headers=message.headers", needs=("rabbitmq",))
async def republish_headers(b: Program) -> None:
    await republish(b, lambda message: Message(message.body, headers=message.headers))


@boundary("aio-pika: retry: republish the received message itself", needs=("rabbitmq",))
async def republish_itself(b: Program) -> None:
    await republish(b, lambda message: message)


@boundary("aio-pika: retry: republish with fresh headers", needs=("rabbitmq",))
async def republish_fresh(b: Program) -> None:
    await republish(b, lambda message: Message(message.body))


@boundary("aio-pika: republished after the callback returned (buffered batch)", needs=("rabbitmq",))
async def buffered(b: Program) -> None:
    async def keep(message: Any) -> None:
        buffer.append(message)

    async def on_message(message: Any) -> None:
        b.far(text(message))

    buffer: list[Any] = []
    async with opened(b) as ch:
        queue, target = await new_queue(ch), await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await handle(queue, keep, 2)
        for message in buffer:
            await ch.default_exchange.publish(Message(message.body, headers=message.headers), target.name)
        await handle(target, on_message, 2)


# ---------------------------------------------------------------------------------------------------------- patterns


@boundary("aio-pika: RPC pattern", needs=("rabbitmq",))
async def rpc_pattern(b: Program) -> None:
    async def work(*, key: str) -> str:
        await asyncio.sleep(0.01)
        b.far(key)
        return key

    async with opened(b) as ch:
        rpc = await RPC.create(ch)
        name = f"work-{uuid.uuid4().hex[:12]}"
        await rpc.register(name, work, auto_delete=True)
        for key in "ab":
            with b.near(key) as near:
                answer = await rpc.call(name, {"key": key})
                if answer != key or trace.get_current_span() is not near:
                    b.leak("after the call")
        with b.near("c"):
            await asyncio.gather(*(rpc.call(name, {"key": "c"}) for _ in range(3)))
        await rpc.close()


@boundary("aio-pika: RPC by reply_to, correlation_id", needs=("rabbitmq",))
async def rpc(b: Program) -> None:
    async def on_request(message: Any) -> None:
        b.far(text(message))
        answer = Message(message.body, correlation_id=message.correlation_id)
        await ch.default_exchange.publish(answer, routing_key=message.reply_to)

    async def on_reply(message: Any) -> None:
        b.far(text(message))
        waiting.pop(message.correlation_id).set_result(text(message))

    waiting: dict[Any, asyncio.Future[str]] = {}
    async with opened(b) as ch:
        queue = await new_queue(ch)
        replies = await ch.declare_queue(exclusive=True)
        await queue.consume(on_request, no_ack=True)
        await replies.consume(on_reply, no_ack=True)
        for key in "ab":
            with b.near(key):
                correlation_id = uuid.uuid4().hex
                waiting[correlation_id] = answered = asyncio.get_running_loop().create_future()
                request = Message(key.encode(), reply_to=replies.name, correlation_id=correlation_id)
                await ch.default_exchange.publish(request, queue.name)
                await asyncio.wait_for(answered, DEADLINE_S)


@boundary("aio-pika: Master/Worker pattern", needs=("rabbitmq",))
async def master(b: Program) -> None:
    done = Done()

    async def work(*, key: str) -> None:
        b.far(key)
        done()

    async with opened(b) as ch:
        pattern = Master(ch)
        name = f"work-{uuid.uuid4().hex[:12]}"
        await pattern.create_worker(name, work, auto_delete=True)
        for key in "ab":
            with b.near(key):
                await pattern.create_task(name, {"key": key})
        await done.wait(2)


# ----------------------------------------------------------------------------------------------------------- sending


@boundary("aio-pika: publish inside a transaction / batch of publishes gather", needs=("rabbitmq",))
async def transaction(b: Program) -> None:
    async def on_message(message: Any) -> None:
        b.far(text(message))

    async with opened(b) as ch, opened(b, publisher_confirms=False) as transacting:
        queue = await new_queue(ch)
        with b.near("a"):
            async with transacting.transaction():
                await transacting.default_exchange.publish(Message(b"a"), queue.name)
        with b.near("b"):
            await asyncio.gather(*(ch.default_exchange.publish(Message(b"b"), queue.name) for _ in range(3)))
        await handle(queue, on_message, 4)


@boundary("aio-pika: headers None, empty, shared, read-only, a locked message, a task", needs=("rabbitmq",))
async def header_arguments(b: Program) -> None:
    async def on_message(message: Any) -> None:
        b.far(text(message))
        one_header(b, message)

    shared: dict[str, Any] = {"customer": 7}
    read_only: Any = types.MappingProxyType({"customer": 7, "Traceparent": "00-00-00-00"})
    locked = Message(b"e", headers=shared, expiration=timedelta(minutes=1), delivery_mode=DeliveryMode.PERSISTENT)
    locked.lock()
    async with opened(b) as ch:
        queue = await new_queue(ch)
        publish = ch.default_exchange.publish
        sends: list[Callable[[], Any]] = [
            lambda: publish(Message(b"a"), queue.name),
            lambda: publish(message=Message(b"b", headers={}), routing_key=queue.name, mandatory=False),
            lambda: publish(Message(b"c", headers=shared), routing_key=queue.name, timeout=DEADLINE_S),
            lambda: publish(Message(b"d", headers=read_only), queue.name),
            lambda: publish(locked, queue.name),
            lambda: asyncio.create_task(publish(Message(b"f", headers=shared), queue.name)),
        ]
        for key, send in zip("abcdef", sends, strict=True):
            with b.near(key):
                await send()
        await handle(queue, on_message, len(sends))
    if shared != {"customer": 7} or read_only["Traceparent"] != "00-00-00-00":
        b.leak(f"into the caller's headers: {shared}")


@boundary("aio-pika: exchange declared by name, topic, subclass of Message", needs=("rabbitmq",))
async def exchanges(b: Program) -> None:
    class Event(Message):
        def __init__(self, key: str) -> None:
            super().__init__(b"", headers={"event": key})
            self.body = key.encode()

    async def on_message(message: IncomingMessage) -> None:
        b.far(text(message))

    async with opened(b) as ch:
        exchange = await ch.declare_exchange(f"events-{uuid.uuid4().hex[:12]}", ExchangeType.TOPIC)
        queue = await new_queue(ch)
        await queue.bind(exchange, "order.*")
        for key in "ab":
            with b.near(key):
                await exchange.publish(Event(key), f"order.{key}")
        await handle(queue, on_message, 2)


@boundary("aio-pika: message that nobody receives comes back", needs=("rabbitmq",))
async def returned(b: Program) -> None:
    def on_return(ch: Any, message: Any) -> None:
        b.far(text(message))

    async with opened(b) as ch:
        ch.return_callbacks.add(on_return)
        for key in "ab":
            with b.near(key):
                await ch.default_exchange.publish(Message(key.encode()), f"nowhere-{uuid.uuid4().hex}")


# ---------------------------------------------------------------------------------------------------------- own roots


@boundary("aio-pika: hostile trace headers of strangers", expect="own root", needs=("rabbitmq",))
async def hostile_headers(b: Program) -> None:
    async def on_message(message: Any) -> None:
        b.far("-")

    async with opened(b) as ch:
        queue = await new_queue(ch)
        subprocess.run(
            [sys.executable, "-c", STRANGER, b.address("rabbitmq"), queue.name], env=plain_environment(), check=True
        )
        await send_each(b, ch, await new_queue(ch), "-")
        for _ in range(HOSTILE // 4):
            await queue.get(no_ack=True)
            b.far("-")
        left = HOSTILE // 4
        async with queue.iterator() as messages:
            async for message in messages:
                b.far("-")
                await message.ack()
                left -= 1
                if not left:
                    break
        await handle(queue, on_message, HOSTILE // 2)


# ---------------------------------------------------------------------------------------- services as they are written


@boundary("aio-pika: a consumer class, its method as the callback, requeued once", needs=("rabbitmq",))
async def consumer_class(b: Program) -> None:
    class Consumer:
        def __init__(self, ch: Any) -> None:
            self.ch, self.failed, self.done = ch, False, Done()

        async def start(self, queue: Any) -> None:
            await self.ch.set_qos(prefetch_count=1)
            await queue.consume(self.on_message)

        async def on_message(self, message: Any) -> None:
            with contextlib.suppress(ValueError):
                async with message.process(requeue=True, reject_on_redelivered=False):
                    await self.handle(text(message))
            self.done()

        async def handle(self, key: str) -> None:
            await asyncio.sleep(0)
            b.far(key)
            if not self.failed:
                self.failed = True
                raise ValueError(key)

    async with opened(b) as ch:
        queue = await new_queue(ch)
        consumer = Consumer(ch)
        with b.span("startup"):
            await consumer.start(queue)
        await send_each(b, ch, queue, "ab")
        await consumer.done.wait(3)


@boundary("aio-pika: iterator held in a variable, left by break, then walked on", needs=("rabbitmq",))
async def iterator_in_variable(b: Program) -> None:
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "abc")
        async with queue.iterator(no_ack=False) as messages:
            async for message in messages:
                async with message.process():
                    b.far(text(message))
                    if message.body == b"b":
                        break
            b.clean("after break")
            async for message in messages:
                b.far(text(message))
                await message.ack()
                break
            b.clean("after the second break")
        b.clean("after the iterator")


@boundary("aio-pika: several workers, each with an iterator over one queue, cancelled at the end", needs=("rabbitmq",))
async def worker_tasks(b: Program) -> None:
    done = Done()

    async def work(ch: Any) -> None:
        queue = await ch.declare_queue(name)
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    await asyncio.sleep(0.01)
                    b.far(text(message))
                done()

    async with opened(b) as ch, opened(b) as other:
        queue = await new_queue(ch)
        name = queue.name
        with b.span("startup"):
            workers = [asyncio.create_task(work(of)) for of in (ch, other)]
        await send_each(b, ch, queue, "abcd")
        await done.wait(4)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


@boundary("aio-pika: a semaphore and a TaskGroup, a task for each message", needs=("rabbitmq",))
async def bounded_tasks(b: Program) -> None:
    limit = asyncio.Semaphore(2)

    async def work(message: Any) -> None:
        async with limit, message.process():
            await asyncio.sleep(0.05)
            b.far(text(message))

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "abcd")
        left = 4
        async with asyncio.TaskGroup() as group, queue.iterator() as messages:
            async for message in messages:
                group.create_task(work(message))
                left -= 1
                if not left:
                    break
        b.clean("after the group")


@boundary("aio-pika: connection and channel pools, publish and get", needs=("rabbitmq",))
async def pools(b: Program) -> None:
    async def get_connection() -> Any:
        return await connect_robust(f"amqp://guest:guest@{b.address('rabbitmq')}/")

    async def get_channel() -> Any:
        async with connections.acquire() as connection:
            return await connection.channel()

    async def publish(key: str) -> None:
        async with channels.acquire() as ch:
            await ch.default_exchange.publish(Message(key.encode()), name)

    async def consume() -> None:
        async with channels.acquire() as ch:
            await ch.set_qos(10)
            queue = await ch.declare_queue(name, durable=False, auto_delete=False)
            left = 3
            async with queue.iterator() as messages:
                async for message in messages:
                    b.far(text(message))
                    await message.ack()
                    left -= 1
                    if not left:
                        break

    connections: Pool[Any] = Pool(get_connection, max_size=2)
    channels: Pool[Any] = Pool(get_channel, max_size=4)
    async with connections, channels:
        async with channels.acquire() as ch:
            name = (await new_queue(ch)).name
        for key in "abc":
            with b.near(key):
                await publish(key)
        await asyncio.wait_for(consume(), DEADLINE_S)
    b.clean("after the pools")


@boundary("aio-pika: a handler that is cancelled, the next message", needs=("rabbitmq",))
async def handler_cancelled(b: Program) -> None:
    seen = Done()

    async def on_message(message: Any) -> None:
        try:
            async with message.process(ignore_processed=True):
                b.far(text(message))
                if message.body == b"a":
                    async with asyncio.timeout(0.05):
                        await asyncio.sleep(10)
        except TimeoutError:
            b.far(text(message))
        finally:
            seen()

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await queue.consume(on_message)
        await send_each(b, ch, queue, "ab")
        await seen.wait(2)
        b.clean("after the messages")


@boundary("aio-pika: queue.get() polled: fail=False, QueueEmpty, timeout", needs=("rabbitmq",))
async def polled(b: Program) -> None:
    async def poll(queue: Any) -> None:
        while (message := await queue.get(fail=False)) is not None:
            async with message.process():
                b.far(text(message))
        b.clean("when it is empty")

    async def poll_raising(queue: Any) -> None:
        while True:
            try:
                message = await queue.get(timeout=5)
            except QueueEmpty:
                b.clean("when QueueEmpty is raised")
                break
            b.far(text(message))
            await message.ack()

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "ab")
        await poll(queue)
        b.clean("after poll()")
        await send_each(b, ch, queue, "cd")
        await poll_raising(queue)
        b.clean("after poll_raising()")


@boundary("aio-pika: retry by a queue with a TTL whose dead letters come back", needs=("rabbitmq",))
async def delayed_retry(b: Program) -> None:
    tries = []
    done = Done()

    async def on_message(message: Any) -> None:
        b.far()
        one_header(b, message)
        tries.append(message.headers.get("x-death"))
        if len(tries) < 3:
            await message.reject(requeue=False)
        else:
            await message.ack()
            done()

    async with opened(b) as ch:
        exchange = await ch.declare_exchange(f"x-{uuid.uuid4().hex[:12]}", ExchangeType.DIRECT)
        work = await new_queue(
            ch, arguments={"x-dead-letter-exchange": exchange.name, "x-dead-letter-routing-key": "wait"}
        )
        wait = await new_queue(
            ch,
            arguments={
                "x-message-ttl": 50,
                "x-dead-letter-exchange": exchange.name,
                "x-dead-letter-routing-key": "work",
            },
        )
        await work.bind(exchange, "work")
        await wait.bind(exchange, "wait")
        await work.consume(on_message)
        with b.near():
            await exchange.publish(Message(b"order", delivery_mode=DeliveryMode.PERSISTENT), "work")
        await done.wait(1)


@boundary("aio-pika: JsonRPC: proxy, nested calls, an error, a timeout", needs=("rabbitmq",))
async def json_rpc(b: Program) -> None:
    async with opened(b) as ch, opened(b) as other:
        server, client = await JsonRPC.create(other), await JsonRPC.create(ch)
        outer, inner = (f"work_{uuid.uuid4().hex[:12]}" for _ in "ab")

        async def on_inner(key: str) -> str:
            b.far(key)
            if key == "b":
                raise ValueError(key)
            if key == "c":
                await asyncio.sleep(0.3)
            return key

        async def on_outer(key: str) -> str:
            b.far(key)
            answer = await client.call(inner, {"key": key}, expiration=5)
            b.far(key)
            return str(answer)

        await server.register(inner, on_inner, auto_delete=True)
        await server.register(outer, on_outer, auto_delete=True)
        with b.near("a") as near:
            if await getattr(client.proxy, outer)(key="a") != "a" or trace.get_current_span() is not near:
                b.leak("after the answer")
        with b.near("b") as near:
            try:
                await client.call(outer, {"key": "b"})
            except Exception:
                if trace.get_current_span() is not near:
                    b.leak("after the error")
        with b.near("c"), contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(client.call(inner, {"key": "c"}), 0.1)
        await asyncio.sleep(0.4)
        await server.close()
        await client.close()
        b.clean("after all")


@boundary(
    "aio-pika: Master: proxy, NackMessage and RejectMessage, a worker that makes the next task", needs=("rabbitmq",)
)
async def master_errors(b: Program) -> None:
    done = Done()
    tries: list[str] = []

    async with opened(b) as ch:
        pattern = JsonMaster(ch)
        first, second = (f"work_{uuid.uuid4().hex[:12]}" for _ in "ab")

        async def on_first(*, key: str) -> None:
            b.far(key)
            tries.append(key)
            if tries.count(key) == 1:
                raise NackMessage(requeue=True)
            await pattern.create_task(second, {"key": key})
            if key == "b":
                raise RejectMessage(requeue=False)

        async def on_second(*, key: str) -> None:
            b.far(key)
            done()

        await pattern.create_worker(first, on_first, auto_delete=True)
        await pattern.create_worker(second, on_second, auto_delete=True)
        for key in "ab":
            with b.near(key):
                await getattr(pattern.proxy, first)(key=key)
        await done.wait(2)


@boundary("aio-pika: a loop on a thread of its own, requests publish by run_coroutine_threadsafe", needs=("rabbitmq",))
def threaded_loop(b: Program) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    seen = threading.Semaphore(0)

    async def on_message(message: Any) -> None:
        async with message.process():
            b.far(text(message))
        seen.release()

    async def start() -> Any:
        connection = await connect_robust(f"amqp://guest:guest@{b.address('rabbitmq')}/")
        ch = await connection.channel(publisher_confirms=True)
        queue = await new_queue(ch)
        await queue.consume(on_message)
        return connection, ch, queue

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(DEADLINE_S)

    connection, ch, queue = run(start())
    for key in "ab":
        with b.near(key):
            run(ch.default_exchange.publish(Message(key.encode()), queue.name))
    for _ in "ab":
        seen.acquire(timeout=DEADLINE_S)
    run(connection.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@boundary("aio-pika: handler goes on by call_later, call_soon, a done callback, an executor", needs=("rabbitmq",))
async def handler_goes_on(b: Program) -> None:
    loop = asyncio.get_running_loop()
    done = Done()

    def late(key: str) -> None:
        b.far(key)
        done()

    async def on_message(message: Any) -> None:
        key = text(message)
        loop.call_later(0.05, late, key)
        loop.call_soon(late, key)
        task = asyncio.create_task(asyncio.sleep(0.02))
        task.add_done_callback(lambda _: late(key))
        loop.run_in_executor(None, b.far, key).add_done_callback(lambda _: late(key))

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await queue.consume(on_message, no_ack=True)
        await send_each(b, ch, queue, "ab")
        await done.wait(8)


@boundary("aio-pika: loop body goes on by call_later after the next message was taken", needs=("rabbitmq",))
async def body_goes_on(b: Program) -> None:
    loop = asyncio.get_running_loop()
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "abc")
        left = 3
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                loop.call_later(0.05, b.far, text(message))
                loop.call_soon(b.far, text(message))
                left -= 1
                if not left:
                    break
        await asyncio.sleep(0.2)


@boundary("aio-pika: chain A -> B -> C over a topic and a fanout exchange, transactions", needs=("rabbitmq",))
async def chain(b: Program) -> None:
    done = Done()
    async with opened(b, publisher_confirms=False) as ch:
        topic = await ch.declare_exchange(f"x-{uuid.uuid4().hex[:12]}", ExchangeType.TOPIC, auto_delete=True)
        fanout = await ch.declare_exchange(f"x-{uuid.uuid4().hex[:12]}", ExchangeType.FANOUT, auto_delete=True)
        first = await new_queue(ch)
        await first.bind(topic, "order.#")
        rest = [await ch.declare_queue("", exclusive=True) for _ in "ab"]
        for queue in rest:
            await queue.bind(fanout)

        async def relay(message: Any) -> None:
            async with message.process(), ch.transaction():
                b.far(text(message))
                await fanout.publish(Message(message.body, content_type="text/plain"), routing_key="")

        async def last(message: Any) -> None:
            async with message.process():
                b.far(text(message))
                one_header(b, message)
                done()

        await first.consume(relay)
        for queue in rest:
            await queue.consume(last)
        for key in "ab":
            with b.near(key):
                await topic.publish(Message(key.encode()), f"order.{key}.created")
        await done.wait(4)


@boundary("aio-pika: publish in parallel from several requests on one channel", needs=("rabbitmq",))
async def parallel(b: Program) -> None:
    keys = "abcdefgh"

    async def request(key: str) -> None:
        with b.near(key):
            await asyncio.gather(
                *(ch.default_exchange.publish(Message(key.encode(), headers=shared), queue.name) for _ in "12")
            )

    async def on_message(message: Any) -> None:
        b.far(text(message))
        one_header(b, message)

    shared: Any = {"v": 1}
    async with opened(b) as ch:
        queue = await new_queue(ch)
        await asyncio.gather(*map(request, keys))
        await handle(queue, on_message, 2 * len(keys))
    if shared != {"v": 1}:
        b.leak("into the shared headers")


@boundary("aio-pika: the program's own async generator over the iterator", needs=("rabbitmq",))
async def own_generator(b: Program) -> None:
    async def bodies(queue: Any, count: int) -> AsyncIterator[str]:
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    yield text(message)
                count -= 1
                if not count:
                    return

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await send_each(b, ch, queue, "abc")
        async for key in bodies(queue, 3):
            await asyncio.sleep(0)
            b.far(key)
        b.clean("after the loop")


@boundary("aio-pika: reply over the message's own channel, direct reply-to", needs=("rabbitmq",))
async def direct_reply(b: Program) -> None:
    done = Done()

    async def on_request(message: Any) -> None:
        b.far(text(message))
        await message.channel.basic_publish(message.body, routing_key=message.reply_to)

    async def on_reply(message: Any) -> None:
        b.far(text(message))
        done()

    async with opened(b) as ch:
        queue = await new_queue(ch)
        await queue.consume(on_request, no_ack=True)
        replies = await ch.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await replies.consume(on_reply, no_ack=True)
        for key in "ab":
            with b.near(key):
                await ch.default_exchange.publish(Message(key.encode(), reply_to="amq.rabbitmq.reply-to"), queue.name)
                await done.wait(1)


@boundary("aio-pika: the connection breaks, the robust one consumes again", needs=("rabbitmq",))
async def reconnects(b: Program) -> None:
    done = Done()

    async def on_message(message: Any) -> None:
        async with message.process():
            b.far(text(message))
            done()

    connection = await connect_robust(f"amqp://guest:guest@{b.address('rabbitmq')}/", reconnect_interval=0.1)
    async with connection, opened(b) as other:
        ch = await connection.channel()
        name = (await new_queue(other)).name
        queue = await ch.declare_queue(name)
        await queue.consume(on_message)
        await send_each(b, other, queue, "a")
        await done.wait(1)
        back = asyncio.Event()
        connection.reconnect_callbacks.add(lambda *_: back.set())
        await connection.transport.connection.close(ConnectionError("lost"))
        await asyncio.wait_for(back.wait(), DEADLINE_S)
        await send_each(b, other, queue, "b")
        await done.wait(1)
