"""Async message: aio-pika."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import types
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import aio_pika
from aio_pika import DeliveryMode, ExchangeType, IncomingMessage, Message
from aio_pika.patterns import RPC, Master
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
